//! Every setting once. Longer than other files because it is one table: name, default, meaning, consequence. `-help`
//! prints it, and a test holds docs/configuration.md to it.

use super::flags::{Flag, Group, switch, value};

/// The settings of one retry policy (module `retry`), named by who retries.
macro_rules! retry_flags {
    ($who:literal, $breaker:literal) => {
        [
            value(
                concat!($who, "-retry-policy"),
                "exponential",
                "none, or exponential: wait longer after each failure.",
                "Definitive answers, such as a MISS or a wrong password, are never tried again.",
            ),
            value(
                concat!($who, "-retry-attempts"),
                "3",
                "Attempts in all, 1 to 100.",
                "The last error is the one told.",
            ),
            value(
                concat!($who, "-retry-delay"),
                "100ms",
                "Wait before the second attempt, 1ms to 1h.",
                "It grows from there.",
            ),
            value(concat!($who, "-retry-factor"), "2", "Growth of the wait, 1 to 10.", "1: every wait is the same."),
            value(concat!($who, "-retry-max-delay"), "5s", "Longest wait, 1ms to 1h.", "It stops growing there."),
            switch(
                concat!($who, "-retry-jitter"),
                "true",
                "Spread each wait at random.",
                "Instances that failed together do not come back together.",
            ),
            value(
                concat!($who, "-retry-breaker"),
                $breaker,
                "Failures in a row that open the circuit breaker, 0 to 1000; 0: none.",
                "While it is open nothing is tried: each attempt fails at once.",
            ),
            value(
                concat!($who, "-retry-breaker-open"),
                "5s",
                "How long the breaker stays open, 1ms to 1h.",
                "Then one attempt decides whether it closes.",
            ),
        ]
    };
}

/// All settings, grouped in the order in which a frame and then a NACK meets them.
pub const GROUPS: &[Group] = &[
    Group { title: "Fabric and ingress", flags: INGRESS },
    Group { title: "Source-specific multicast", flags: SSM },
    Group { title: "Cache", flags: CACHE },
    Group { title: "NACKs", flags: NACK },
    Group { title: "Egress and repair", flags: EGRESS },
    Group { title: "Limits", flags: LIMITS },
    Group { title: "Redis", flags: REDIS },
    Group { title: "Retrying Redis", flags: &REDIS_RETRY },
    Group { title: "Dedup between instances", flags: DEDUP },
    Group { title: "Recovery from upstream", flags: PROXY },
    Group { title: "Retrying a recovery", flags: &PROXY_RETRY },
    Group { title: "Beacon", flags: BEACON },
    Group { title: "XDP", flags: XDP },
    Group { title: "Administration", flags: ADMIN },
    Group { title: "Telemetry", flags: TELEMETRY },
];

const INGRESS: &[Flag] = &[
    value("mc-iface", "eth0", "Fabric interface.", "The groups are joined on it, and XDP attaches to it."),
    value(
        "listen-port",
        "9001",
        "UDP port of the multicast data plane, 1 to 65535.",
        "Frames to other ports are not seen.",
    ),
    Flag {
        env_name: Some("MC_SCOPE"),
        ..value(
            "scope",
            "site",
            "Scope of the groups: link, site, org or global.",
            "It is part of every group address: publishers, listeners and endpoint have the same.",
        )
    },
    value(
        "mc-group-id",
        "0x000B",
        "Group id in the group addresses, hex or decimal, 0 to 0xFFFF.",
        "Like the scope, the same on the whole fabric.",
    ),
    value(
        "source-mode",
        "asm",
        "asm: any source. ssm: named sources, with scope site or global.",
        "It changes every group address.",
    ),
    value(
        "bind-source",
        "",
        "IPv6 address of this host that multicast repairs and beacons come from.",
        "Not set: the egress interface's own. With ssm it is left out of our own joins.",
    ),
    value(
        "shard-bits",
        "2",
        "Leading bits of a TxID that choose its group, 1 to 12.",
        "2^bits groups are joined; the same on the whole fabric.",
    ),
    switch(
        "subtree-data-enabled",
        "false",
        "Join the group of subtree data too.",
        "Without it, NACKs for subtree data are misses.",
    ),
    switch(
        "beef-enabled",
        "false",
        "Join the groups of BEEF objects too.",
        "Without it, NACKs for BEEF objects are misses.",
    ),
    value(
        "beef-shard-bits",
        "0",
        "Leading bits of a TopicID that choose its group, 0 to 12.",
        "2^bits groups are joined with -beef-enabled; the same on the whole fabric.",
    ),
    value(
        "tee-listen",
        "",
        "Loopback address and port that takes frames from a program on this host, such as [::1]:9002.",
        "Frames come in without multicast.",
    ),
    switch(
        "mc-join-enabled",
        "true",
        "Join the multicast groups.",
        "False: frames come from -tee-listen alone, which must be set.",
    ),
    value(
        "ingress-workers",
        "0",
        "Threads that the groups are spread over, 0 to 64; 0: one while that is enough.",
        "0 is one with up to 16 groups or fewer than 8 CPUs, else one for every 4 CPUs, at most 4. Never more than groups.",
    ),
];

const SSM: &[Flag] = &[
    value(
        "ssm-bootstrap-manifest",
        "",
        "IPv6 addresses and DNS names that send shard manifests, comma separated.",
        "Their manifests name the sources of the data plane.",
    ),
    value(
        "ssm-bootstrap-beacon",
        "",
        "IPv6 addresses and DNS names that send beacons, comma separated.",
        "The beacon groups are joined from these sources.",
    ),
    value(
        "ssm-bootstrap-subtree-announce",
        "",
        "IPv6 addresses and DNS names that announce subtrees, comma separated.",
        "The subtree group is joined from these sources.",
    ),
    value(
        "ssm-publishers-static",
        "",
        "IPv6 addresses and DNS names of publishers, comma separated.",
        "Always joined; more than 16 need -ssm-bootstrap-manifest.",
    ),
    value(
        "ssm-bootstrap-refresh",
        "30s",
        "Time after which DNS names are asked again, 1s to 1h.",
        "A publisher that moved is heard again after it.",
    ),
];

const CACHE: &[Flag] = &[
    value(
        "cache-memory",
        "256m",
        "Memory of the ring of transactions and BEEF objects, 16m to 64g, in k, m, g or bytes.",
        "Too small: frames go before their TTL; bre_cache_oldest_age_seconds shows it.",
    ),
    value(
        "cache-memory-long",
        "64m",
        "Memory of the ring of blocks, subtrees and anchors, 16m to 64g.",
        "A burst of transactions cannot push them out.",
    ),
    value(
        "cache-max-keys",
        "0",
        "Most frames held; 0: as many as the rings have room for.",
        "The oldest frames go first.",
    ),
    value(
        "cache-ttl",
        "60s",
        "Life of every class but BEEF that has no value of its own, 1ms to 1176h.",
        "When set, by flag or variable, it replaces the defaults of the four classes.",
    ),
    value("cache-ttl-tx", "60s", "Life of transactions and bundles.", "A NACK after it is a miss."),
    value("cache-ttl-block", "10m", "Life of blocks.", "A NACK after it is a miss."),
    value("cache-ttl-subtree", "5m", "Life of subtree data.", "A NACK after it is a miss."),
    value("cache-ttl-anchor", "2m", "Life of anchors.", "A NACK after it is a miss."),
    value(
        "cache-ttl-beef",
        "60s",
        "Life of BEEF objects; -cache-ttl does not change it.",
        "A NACK after it is a miss.",
    ),
    value(
        "cache-backend",
        "memory",
        "memory, or redis: frames are shared between instances.",
        "redis needs -redis-addr.",
    ),
];

const NACK: &[Flag] = &[
    value("nack-port", "9300", "UDP port of NACKs, 1 to 65535.", "Beacons announce it, and answers come from it."),
    value(
        "nack-addr",
        "",
        "IPv6 address of NACKs.",
        "Beacons announce it. Not set: the first global unicast address of the first egress interface.",
    ),
    switch(
        "nack-port-shared",
        "false",
        "Let other programs on this host bind the NACK port after this one.",
        "A listener that starts later can hear beacons there; any user of the host can then take NACKs from the socket.",
    ),
    value(
        "nack-workers",
        "",
        "Threads that serve the NACK socket, 1 to 1024.",
        "They serve what XDP leaves to the daemon. Not set: one for each CPU.",
    ),
    switch("suppress-ack", "false", "Send no ACKs.", "Hits are answered with the frame alone."),
    switch(
        "suppress-miss",
        "false",
        "Send no MISSes.",
        "Listeners wait for their timeout before they ask the next endpoint.",
    ),
];

const EGRESS: &[Flag] = &[
    value(
        "egress-iface",
        "eth0",
        "Interfaces that multicast repairs leave by, comma separated, 1 to 16, none twice.",
        "Every repair goes out of each; the first carries beacons.",
    ),
    value(
        "egress-port",
        "9001",
        "UDP port of multicast repairs, 1 to 65535.",
        "Listeners hear repairs only on their data port.",
    ),
    switch(
        "egress-multicast-loop",
        "false",
        "Loop multicast repairs back to listeners on this host.",
        "Repairs then leave through the daemon, not through XDP: slower.",
    ),
    Flag {
        env_name: Some("EGRESS_HOPLIMIT"),
        ..value(
            "egress-hoplimit",
            "1",
            "Hop limit of multicast repairs and beacons, 1 to 255.",
            "With 1 they do not pass a router.",
        )
    },
    value(
        "repair-holddown",
        "10ms",
        "No second multicast of a frame within this time, 0 to 1h; 0: off.",
        "Many listeners that miss one frame get one repair, and an ACK each.",
    ),
];

const LIMITS: &[Flag] = &[
    value("rl-ip-rate", "100", "NACKs a second from one address, 0 to 1000000000; 0: no limit.", "Over it: silence."),
    value(
        "rl-ip-burst",
        "10",
        "NACKs at once from one address, 1 to 1000000.",
        "Listeners that lose a burst ask in a burst.",
    ),
    Flag {
        aliases: &["rl-sender-rate"],
        ..value(
            "rl-chain-rate",
            "500",
            "NACKs from one address for one flow in -rl-chain-window, 0 to 1000000; 0: no limit.",
            "Over it: silence, or THROTTLED. HashKey 0 is exempt.",
        )
    },
    Flag { aliases: &["rl-sender-window"], ..value("rl-chain-window", "1m", "That window, 1ms to 1h.", "It slides.") },
    value(
        "rl-sequence-max",
        "100",
        "Answers for one frame in -rl-sequence-window, 0 to 1000000; 0: no limit.",
        "Over it: silence, or THROTTLED.",
    ),
    value("rl-sequence-window", "1m", "That window, 1ms to 1h.", "It slides."),
    value(
        "rl-group-rate",
        "200",
        "Hits a second from one address in one group, 0 to 1000000000; 0: no limit.",
        "Over it: silence, or THROTTLED.",
    ),
    value(
        "rl-group-burst",
        "50",
        "Hits at once from one address in one group, 1 to 1000000.",
        "Listeners that lose a burst ask in a burst.",
    ),
    switch(
        "rl-throttle-response",
        "false",
        "Say THROTTLED instead of nothing.",
        "Listeners hold back for the time it tells; never said for the limit of an address.",
    ),
    value(
        "limit-table-entries",
        "65536",
        "Entries of each limit table, 1024 to 16777216.",
        "Memory is taken at start; when full, who has used least of a limit is forgotten.",
    ),
];

const REDIS: &[Flag] = &[
    value(
        "redis-addr",
        "",
        "host:port, redis:// or rediss:// (TLS), a comma list of a Redis Cluster, or redis+sentinel://hosts/name.",
        "With -cache-backend memory it serves dedup between instances alone.",
    ),
    value(
        "cache-dial-timeout",
        "1s",
        "Longest time to connect to Redis, 1ms to 1h.",
        "Past it the cache goes on without. No effect without -redis-addr.",
    ),
    value(
        "cache-op-timeout",
        "1s",
        "Longest time for one Redis operation, 1ms to 1h.",
        "Past it the operation is a miss: no NACK waits for it. No effect without -redis-addr.",
    ),
    value(
        "redis-tls-ca",
        "",
        "File of certificate authorities (PEM) that vouch for Redis.",
        "Not set: the system's. Needs rediss:// in -redis-addr.",
    ),
    value(
        "redis-tls-cert",
        "",
        "File of our client certificate (PEM).",
        "For servers that ask for one; needs -redis-tls-key.",
    ),
    value("redis-tls-key", "", "File of its private key (PEM).", "Needs -redis-tls-cert."),
];

const REDIS_RETRY: [Flag; 8] = retry_flags!("redis", "5");

const DEDUP: &[Flag] = &[
    value(
        "dedup-window",
        "60s",
        "How long a claim of a multicast repair is kept in Redis, 0 to 1h; 0: no claims.",
        "No effect without -redis-addr.",
    ),
    value(
        "dedup-mode",
        "eventual",
        "eventual: instances tell each other of repairs. strict: they claim a repair before they send it.",
        "strict sends no frame twice, but takes multicast repairs out of XDP.",
    ),
    value(
        "dedup-repeat-after",
        "1s",
        "How long another instance's claim silences our multicast, 0 to -dedup-window; 0: the whole window.",
        "A listener that asks again after it has lost the repair too, and gets one. No effect without -redis-addr.",
    ),
];

const PROXY: &[Flag] = &[
    switch(
        "proxy-enabled",
        "false",
        "Ask upstream endpoints for frames that we have not.",
        "Needs -upstream-retry-endpoints or -proxy-discover; beacons announce a parent.",
    ),
    value(
        "upstream-retry-endpoints",
        "",
        "Upstream endpoints, host:port, comma separated.",
        "Asked before all that are discovered. Needs -proxy-enabled.",
    ),
    switch(
        "proxy-discover",
        "false",
        "Ask endpoints too that are heard by their beacons.",
        "They come after the ones named. Needs -proxy-enabled.",
    ),
    value(
        "proxy-select",
        "order",
        "order: as listed. hash: by the frame's flow. rtt: the fastest.",
        "hash spreads the flows over the upstreams, and one that is twice as slow as the fastest loses its share.",
    ),
    value(
        "state-dir",
        "",
        "Directory where discovered upstreams are kept, an absolute path.",
        "A cold start asks them before the first beacon. Not set: they are forgotten at the end.",
    ),
    value(
        "proxy-timeout",
        "300ms",
        "How long an upstream endpoint may take, 1ms to 1h.",
        "Past it the next is asked. No effect without -proxy-enabled.",
    ),
    value(
        "proxy-max-endpoints",
        "0",
        "Most upstream endpoints asked for one frame, 0 to 1000; 0: all.",
        "No effect without -proxy-enabled.",
    ),
    value(
        "proxy-dedup-window",
        "60s",
        "How long one recovery of a frame stands for all instances, 1ms to 1h.",
        "No effect without -proxy-enabled.",
    ),
    value(
        "proxy-workers",
        "4",
        "Recovery workers, 1 to 1024.",
        "Each keeps up to 256 recoveries under way. No effect without -proxy-enabled.",
    ),
    value(
        "proxy-queue",
        "1024",
        "Recoveries that may wait, 1 to 1000000.",
        "Past it they are dropped and counted. No effect without -proxy-enabled.",
    ),
];

const PROXY_RETRY: [Flag; 8] = retry_flags!("proxy", "0");

const BEACON: &[Flag] = &[
    switch(
        "beacon-enabled",
        "true",
        "Send ADVERT beacons.",
        "Without them listeners know the endpoint only from their own settings.",
    ),
    value("beacon-tier", "0", "Tier announced, 0 to 254.", "Listeners ask lower tiers first."),
    value(
        "beacon-preference",
        "128",
        "Preference announced within the tier, 0 to 255.",
        "Listeners ask higher ones first.",
    ),
    value(
        "beacon-interval",
        "60s",
        "Time between beacons, 1s to 18h.",
        "Listeners forget an endpoint after three intervals of silence.",
    ),
    value(
        "beacon-scope",
        "site",
        "Scopes of the beacon: site, org, global, or both for all three.",
        "Listeners outside it do not hear of the endpoint.",
    ),
    switch(
        "beacon-flags-multicast",
        "true",
        "Repair by multicast, and announce it.",
        "This or -beacon-flags-unicast must be true.",
    ),
    switch(
        "beacon-flags-unicast",
        "false",
        "Repair by unicast to the NACK's sender, and announce it.",
        "With both, each hit is answered twice.",
    ),
    switch(
        "beacon-flags-draining",
        "false",
        "Announce Draining from the start.",
        "Listeners prefer other endpoints; NACKs are still answered.",
    ),
];

const XDP: &[Flag] = &[
    value(
        "xdp",
        "auto",
        "Where NACKs are answered: auto (native, else off), native, skb or off.",
        "skb: limits and MISSes in the kernel, frames by the daemon. off: all by the daemon's socket.",
    ),
    value(
        "fill",
        "auto",
        "Who stores frames: auto (kernel, where -xdp is native and no other program has -listen-port open; else daemon), kernel or daemon.",
        "The kernel stores whole, new frames with a right checksum, which then reach no socket of this host; everything else the daemon.",
    ),
    value(
        "xdp-lease",
        "10s",
        "How long the kernel goes on answering after the daemon last renewed, 1s to 1h.",
        "A daemon that died leaves no stale cache answering for longer.",
    ),
    value(
        "bpffs",
        "/sys/fs/bpf/retry-endpoint",
        "Directory of the pinned maps, an absolute path on a BPF file system.",
        "bpftool finds the maps there.",
    ),
];

const ADMIN: &[Flag] = &[
    value(
        "metrics-addr",
        ":9400",
        "HTTP address of metrics and health, address:port or :port; port 0: any free one.",
        "No address: every address of the host.",
    ),
    value(
        "admin-addr",
        "",
        "HTTP address of the management API, address:port or :port.",
        "Not set: no API. Any other than a loopback address needs a token.",
    ),
    value(
        "admin-token-file",
        "",
        "File with the bearer token of the management API.",
        "Requests without it get 401. The variable ADMIN_TOKEN holds the token itself and is used when there is no file.",
    ),
    value(
        "drain-timeout",
        "0s",
        "How long a shutdown is announced before the sockets close, 0 to 1h.",
        "NACKs are answered meanwhile.",
    ),
    Flag {
        env_name: Some("INSTANCE_ID"),
        ..value(
            "instance",
            "",
            "Name of this instance in beacons, logs and claims.",
            "Two instances of one name are one endpoint to listeners. Not set: the host name.",
        )
    },
];

const TELEMETRY: &[Flag] = &[
    value(
        "log-format",
        "text",
        "text on stderr, or json on stdout, one object a line.",
        "Every line carries service, instance and version.",
    ),
    value(
        "log-level",
        "info",
        "trace, debug, info, warn or error.",
        "SIGHUP and POST /loglevel change it while the daemon runs.",
    ),
    switch(
        "debug",
        "false",
        "Log level debug, and log lines from the kernel program.",
        "The kernel program is loaded with its log calls: slower.",
    ),
    value(
        "otlp-endpoint",
        "",
        "OpenTelemetry collector (OTLP over gRPC): host:port, http:// or https://.",
        "Metrics and traces are sent to it as well. https:// is held against the system's certificate authorities.",
    ),
    value("otlp-interval", "30s", "Time between exports, 1s to 1h.", "No effect without -otlp-endpoint."),
    value(
        "trace-sampling",
        "0",
        "Share of the NACKs that the daemon handles that are traced, 0 to 1.",
        "What XDP answers is not traced. No effect without -otlp-endpoint.",
    ),
];
