//! Every setting once: its flag, its variable, its default, what it means and what follows from it.

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// The flag, without dashes.
    pub name: &'static str,
    /// Its environment variable, where that is not the name in upper snake case.
    pub env_name: Option<&'static str>,
    /// Other names for it.
    pub aliases: &'static [&'static str],
    /// What it is when nobody sets it; empty is "not set".
    pub default: &'static str,
    /// True when `-name` alone means `-name=true`.
    pub switch: bool,
    /// What it means, and what follows.
    pub help: &'static str,
    /// What comes with it is not built yet: any other value than the default is refused.
    pub later: bool,
}

impl Flag {
    /// Its environment variable.
    pub fn env(&self) -> String {
        self.env_name.map_or_else(|| env_of(self.name), str::to_owned)
    }

    /// The variables of its other names.
    pub fn env_aliases(&self) -> impl Iterator<Item = String> {
        self.aliases.iter().map(|alias| env_of(alias))
    }
}

fn env_of(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

const fn value(name: &'static str, default: &'static str, help: &'static str) -> Flag {
    Flag { name, env_name: None, aliases: &[], default, switch: false, help, later: false }
}

const fn switch(name: &'static str, default: &'static str, help: &'static str) -> Flag {
    Flag { switch: true, ..value(name, default, help) }
}

const fn later(flag: Flag) -> Flag {
    Flag { later: true, ..flag }
}

/// All settings, in the order of `-help` and of docs/configuration.md.
pub const FLAGS: &[Flag] = &[
    value("mc-iface", "eth0", "Fabric interface: group joins, and XDP, attach here."),
    value("listen-port", "9001", "UDP port of the multicast data plane, 1 to 65535."),
    Flag { env_name: Some("MC_SCOPE"), ..value("scope", "site", "Scope of the groups: link, site, org or global.") },
    value("mc-group-id", "0x000B", "Group id in the group addresses, hex or decimal, 0 to 0xFFFF."),
    later(value("source-mode", "asm", "asm: any source. ssm: named sources, with scope site or global.")),
    value(
        "bind-source",
        "",
        "IPv6 address of this host: source of beacons and multicast repairs. Not set: the egress interface's own.",
    ),
    later(value("ssm-bootstrap-manifest", "", "Addresses or DNS names that send shard manifests, comma separated.")),
    later(value("ssm-bootstrap-beacon", "", "Addresses or DNS names that send beacons, comma separated.")),
    later(value(
        "ssm-bootstrap-subtree-announce",
        "",
        "Addresses or DNS names that announce subtrees, comma separated.",
    )),
    later(value(
        "ssm-publishers-static",
        "",
        "Addresses or DNS names of publishers, comma separated; more than 16 need -ssm-bootstrap-manifest.",
    )),
    later(value("ssm-bootstrap-refresh", "30s", "How often DNS names are asked again.")),
    value("shard-bits", "2", "Leading bits of a TxID that choose its group, 1 to 12: 2^bits groups are joined."),
    switch("subtree-data-enabled", "false", "Join the group of subtree data too."),
    switch("beef-enabled", "false", "Join the groups of BEEF objects too."),
    value("beef-shard-bits", "0", "Leading bits of a TopicID that choose its group, 0 to 12."),
    value(
        "cache-memory",
        "256m",
        "Memory of the ring of transactions and BEEF objects, 16m to 64g. Too small: frames go before their TTL, see bre_cache_oldest_age_seconds.",
    ),
    value("cache-memory-long", "64m", "Memory of the ring of blocks, subtrees and anchors, 16m to 64g."),
    later(value("cache-backend", "memory", "memory, or redis: share frames between instances.")),
    later(value("redis-addr", "", "host:port, redis:// or rediss:// URL, or a comma list of a cluster.")),
    later(value("cache-dial-timeout", "1s", "Longest time to connect to the shared store.")),
    later(value(
        "cache-op-timeout",
        "1s",
        "Longest time for one operation of the shared store; then it counts as a miss.",
    )),
    value("cache-ttl", "60s", "Life of all classes but BEEF that have no value of their own."),
    value("cache-ttl-tx", "60s", "Life of transactions and bundles."),
    value("cache-ttl-block", "10m", "Life of blocks."),
    value("cache-ttl-subtree", "5m", "Life of subtree data."),
    value("cache-ttl-anchor", "2m", "Life of anchors."),
    value("cache-ttl-beef", "60s", "Life of BEEF objects."),
    value("cache-max-keys", "0", "Most frames held; 0: as many as the rings have room for."),
    value("nack-port", "9300", "UDP port of NACKs, 1 to 65535."),
    value(
        "nack-addr",
        "",
        "IPv6 address of NACKs. Not set: the first global unicast address of the first egress interface.",
    ),
    value("nack-workers", "", "Threads that serve the NACK socket, 1 to 1024. Not set: one for each CPU."),
    switch("suppress-ack", "false", "Send no ACKs: hits are answered with the frame alone."),
    switch("suppress-miss", "false", "Send no MISSes: listeners wait for their timeout."),
    value(
        "egress-iface",
        "eth0",
        "Interfaces that multicast repairs leave by, comma separated, 16 at most; the first carries beacons.",
    ),
    value("egress-port", "9001", "UDP port of multicast repairs, 1 to 65535."),
    switch(
        "egress-multicast-loop",
        "false",
        "Loop multicast repairs back to listeners on this host: they then leave through the daemon, not through XDP.",
    ),
    value("egress-hoplimit", "1", "Hop limit of multicast repairs and beacons, 1 to 255."),
    value("repair-holddown", "10ms", "No second multicast of a frame within this time, only the ACK; 0: off."),
    later(value("dedup-window", "60s", "How long a claim of another instance is kept in the shared store.")),
    later(value("dedup-mode", "eventual", "eventual: instances announce repairs. strict: they claim first.")),
    later(value("dedup-repeat-after", "1s", "How long a claim of another instance silences our multicast.")),
    later(switch("proxy-enabled", "false", "Ask upstream endpoints for what we have not.")),
    later(value("upstream-retry-endpoints", "", "Upstream endpoints, host:port, comma separated.")),
    later(value("proxy-timeout", "300ms", "How long an upstream endpoint may take.")),
    later(value("proxy-max-endpoints", "0", "Most upstream endpoints asked for one frame; 0: all.")),
    later(value("proxy-dedup-window", "60s", "How long a recovery under way silences another.")),
    later(value("proxy-workers", "4", "Recoveries at a time.")),
    later(value("proxy-queue", "1024", "Recoveries that may wait.")),
    value("rl-ip-rate", "100", "NACKs a second from one address, 0 to 1000000000; 0: no limit."),
    value("rl-ip-burst", "10", "NACKs at once from one address, 1 to 1000000."),
    Flag {
        aliases: &["rl-sender-rate"],
        ..value("rl-chain-rate", "500", "NACKs from one address for one flow in a window, 0 to 1000000; 0: no limit.")
    },
    Flag { aliases: &["rl-sender-window"], ..value("rl-chain-window", "1m", "That window, 1ms to 1h.") },
    value("rl-sequence-max", "100", "Answers for one frame in a window, 0 to 1000000; 0: no limit."),
    value("rl-sequence-window", "1m", "That window, 1ms to 1h."),
    value("rl-group-rate", "200", "Hits a second from one address in one group, 0 to 1000000000; 0: no limit."),
    value("rl-group-burst", "50", "Hits at once from one address in one group, 1 to 1000000."),
    switch("rl-throttle-response", "false", "Say THROTTLED instead of nothing; never for the limit of an address."),
    value(
        "limit-table-entries",
        "65536",
        "Entries of each limit table, 1024 to 16777216: the least recently used go first.",
    ),
    switch("beacon-enabled", "true", "Send ADVERT beacons."),
    value("beacon-tier", "0", "Tier announced, 0 to 254: listeners ask lower ones first."),
    value("beacon-preference", "128", "Preference announced within the tier, 0 to 255: higher first."),
    value("beacon-interval", "60s", "Time between beacons, 1s to 18h: listeners forget an endpoint after three."),
    value("beacon-scope", "site", "Scopes of the beacon: site, org, global, or both for all three."),
    switch("beacon-flags-multicast", "true", "Repair by multicast, and announce it."),
    switch("beacon-flags-unicast", "false", "Repair by unicast to the NACK's sender, and announce it."),
    switch("beacon-flags-draining", "false", "Announce Draining from the start: listeners prefer others."),
    value(
        "xdp",
        "auto",
        "Where NACKs are answered: auto (native, else off), native, skb (limits and MISSes in the kernel, frames by the daemon) or off.",
    ),
    value("xdp-lease", "10s", "How long the kernel goes on answering after a daemon that died, 1s to 1h."),
    value("bpffs", "/sys/fs/bpf/retry-endpoint", "Directory of the pinned maps, on a BPF file system."),
    later(value("tee-listen", "", "Loopback address and port of tee ingest.")),
    later(switch("mc-join-enabled", "true", "Join the multicast groups; false: tee ingest only.")),
    later(value("drain-timeout", "0s", "How long a shutdown is announced before the sockets close.")),
    value("metrics-addr", ":9400", "HTTP address of metrics and health, host:port; no host: every address."),
    Flag {
        env_name: Some("INSTANCE_ID"),
        ..value("instance", "", "Name of this instance in beacons, logs and claims. Not set: the host name.")
    },
    value("log-format", "text", "text on stderr, or json on stdout, one object a line."),
    value("log-level", "info", "trace, debug, info, warn or error."),
    switch("debug", "false", "Log level debug, and log lines from the kernel program."),
    later(value("otlp-endpoint", "", "OTLP collector over gRPC.")),
    later(value("otlp-interval", "30s", "Time between OTLP exports.")),
    later(value("trace-sampling", "0", "Share of NACKs that are traced, 0 to 1.")),
];
