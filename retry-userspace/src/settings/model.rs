//! The settings as the daemon uses them: typed, checked, in the order in which a frame and then a NACK meets them. A
//! field says what it is, its default, and what follows.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use retry_common::group::{BeefBits, Scope, ShardBits, SourceMode};
use retry_common::wire::advert::BeaconScope;
use retry_common::wire::frame::Class;

use super::flags::Flag;
use super::hosts::{Host, HostPort, RedisNode};
use super::source::SetBy;

/// All settings, checked one by one and together.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where frames come from.
    pub ingress: Ingress,
    /// Whose frames are joined by name.
    pub ssm: Ssm,
    /// How frames are kept.
    pub cache: Cache,
    /// How NACKs are taken.
    pub nack: Nack,
    /// How multicast leaves.
    pub egress: Egress,
    /// What a hit gets.
    pub repair: Repair,
    /// Who may ask how often.
    pub limits: Limits,
    /// How Redis is reached.
    pub redis: Redis,
    /// How instances keep out of each other's way.
    pub dedup: Dedup,
    /// Whom we ask for what we have not.
    pub proxy: Proxy,
    /// How the endpoint is announced.
    pub beacon: Beacon,
    /// Where NACKs are answered.
    pub xdp: Xdp,
    /// HTTP, and the end.
    pub admin: Admin,
    /// Logs and traces.
    pub telemetry: Telemetry,
    pub(super) described: Vec<Described>,
}

/// One setting as it is in force.
#[derive(Clone, Debug)]
pub struct Described {
    /// The setting: name, variable, meaning.
    pub flag: &'static Flag,
    /// The value in force as text, without the passwords of URLs; empty when it is not set.
    pub value: String,
    /// Who set it.
    pub set_by: SetBy,
}

/// Where frames come from.
#[derive(Clone, Debug)]
pub struct Ingress {
    /// `mc-iface`: the fabric interface. Default `eth0`. Groups are joined on it, and XDP attaches to it.
    pub mc_iface: String,
    /// `listen-port`: UDP port of the data plane. Default 9001. Frames to other ports are not seen.
    pub listen_port: u16,
    /// `scope`: how far the groups reach. Default site. Part of [`Ingress::group_prefix`].
    pub scope: Scope,
    /// `source-mode`: whether sources are named. Default ASM. Part of [`Ingress::group_prefix`].
    pub source_mode: SourceMode,
    /// First two bytes of every group address, from scope and source mode. Default 0xFF05.
    pub group_prefix: u16,
    /// `mc-group-id`: the group id in every group address. Default 0x000B. Another fabric has another one.
    pub group_id: u16,
    /// `bind-source`: source of repairs and beacons. Default the egress interface's own address. Its own frames are
    /// not taken for new ones.
    pub bind_source: Option<Ipv6Addr>,
    /// `shard-bits`: bits of a TxID that choose its group. Default 2. 2^bits groups are joined.
    pub shard_bits: ShardBits,
    /// `subtree-data-enabled`: join the subtree data group. Default no. Without it such NACKs miss.
    pub subtree_data: bool,
    /// `beef-shard-bits`, with `beef-enabled`: bits of a TopicID that choose its group. Default none: the BEEF band is
    /// not joined, and such NACKs miss.
    pub beef: Option<BeefBits>,
    /// `tee-listen`: loopback socket for frames of a program on this host. Default none. Frames come in without
    /// multicast.
    pub tee: Option<SocketAddr>,
    /// `mc-join-enabled`: join the groups. Default yes. Without it [`Ingress::tee`] is set, and the only source.
    pub join: bool,
    /// `ingress-workers`: threads that the groups are spread over. Default 0: one while that is enough.
    pub workers: usize,
}

/// Whose frames are joined by name (RFC 4607).
#[derive(Clone, Debug)]
pub struct Ssm {
    /// `ssm-bootstrap-manifest`: senders of shard manifests. Default none. Their manifests name the publishers.
    pub manifests: Vec<Host>,
    /// `ssm-bootstrap-beacon`: senders of beacons. Default none. The beacon groups are joined from them.
    pub beacons: Vec<Host>,
    /// `ssm-bootstrap-subtree-announce`: announcers of subtrees. Default none. The subtree group is joined from them.
    pub subtree_announcers: Vec<Host>,
    /// `ssm-publishers-static`: publishers. Default none. Joined whatever the manifests say; at most 16 without any.
    pub publishers: Vec<Host>,
    /// `ssm-bootstrap-refresh`: time after which names are asked again. Default 30 s. A moved host is lost until then.
    pub refresh: Duration,
}

/// Where frames are kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Backend {
    /// In the frame log of this instance.
    Memory,
    /// There, and in Redis for all instances.
    Redis,
}

/// How frames are kept.
#[derive(Clone, Debug)]
pub struct Cache {
    /// `cache-memory`: bytes of the ring of transactions and BEEF. Default 256 MiB. Too small: frames go before their
    /// TTL.
    pub memory: u64,
    /// `cache-memory-long`: bytes of the ring of blocks, subtrees and anchors. Default 64 MiB. Transactions cannot push
    /// them out.
    pub memory_long: u64,
    /// `cache-max-keys`: most frames held. Default 0, no bound but the rings. The oldest go first.
    pub max_keys: u64,
    /// `cache-backend`: where frames are kept. Default memory. Redis needs [`Redis::nodes`].
    pub backend: Backend,
    pub(super) ttl: [Duration; Class::ALL.len()],
}

impl Cache {
    /// Life of a class: its own value when set, else `cache-ttl` when that is set (not for BEEF), else its default.
    /// Never zero.
    pub const fn ttl(&self, class: Class) -> Duration {
        self.ttl[class as usize]
    }
}

/// How NACKs are taken.
#[derive(Clone, Debug)]
pub struct Nack {
    /// `nack-port`: UDP port of NACKs. Default 9300. Beacons announce it, answers come from it.
    pub port: u16,
    /// `nack-addr`: address of NACKs. Default the first global unicast of the first egress interface. Beacons announce
    /// it.
    pub addr: Option<Ipv6Addr>,
    /// `nack-port-shared`: other programs on this host may bind the NACK port after the endpoint. Default no. A listener that
    /// starts later then hears beacons there, and any user of the host can take NACKs.
    pub port_shared: bool,
    /// `nack-workers`: threads of the NACK socket. Default one for each CPU. They serve what XDP leaves.
    pub workers: usize,
    /// `suppress-ack`: send no ACKs. Default no. Hits get the frame alone.
    pub suppress_ack: bool,
    /// `suppress-miss`: send no MISSes. Default no. Listeners wait for their timeout.
    pub suppress_miss: bool,
}

/// How multicast leaves.
#[derive(Clone, Debug)]
pub struct Egress {
    /// `egress-iface`: interfaces of multicast repairs, never empty, none twice. Default `eth0`. The first carries
    /// beacons.
    pub ifaces: Vec<String>,
    /// `egress-port`: UDP port of multicast repairs. Default 9001. Listeners hear repairs on their data port only.
    pub port: u16,
    /// `egress-multicast-loop`: loop repairs back to this host. Default no. Repairs then leave through the daemon.
    pub multicast_loop: bool,
    /// `egress-hoplimit`: hop limit of repairs and beacons, never 0. Default 1. They do not pass a router then.
    pub hop_limit: u8,
}

/// What a hit gets: at least one of multicast and unicast.
#[derive(Clone, Debug)]
pub struct Repair {
    /// `beacon-flags-multicast`: repair by multicast. Default yes. One repair serves all that lost the frame.
    pub multicast: bool,
    /// `beacon-flags-unicast`: repair by unicast. Default no. Each NACK costs a frame.
    pub unicast: bool,
    /// `repair-holddown`: no second multicast of a frame within it. Default 10 ms; zero is off. NACKs within it get the
    /// ACK alone.
    pub holddown: Duration,
}

/// Who may ask how often; a rate or count of 0 is off.
#[derive(Clone, Debug)]
pub struct Limits {
    /// `rl-ip-rate`: NACKs a second from one address. Default 100. Over it: silence.
    pub ip_rate: u32,
    /// `rl-ip-burst`: NACKs at once from one address. Default 10. Above 0 while the rate is.
    pub ip_burst: u32,
    /// `rl-chain-rate`: NACKs a window from one address for one flow. Default 500. Over it: silence or THROTTLED.
    pub chain_rate: u32,
    /// `rl-chain-window`: that window. Default 1 min, 1 ms to 1 h.
    pub chain_window: Duration,
    /// `rl-sequence-max`: answers a window for one frame. Default 100. Over it: silence or THROTTLED.
    pub sequence_max: u32,
    /// `rl-sequence-window`: that window. Default 1 min, 1 ms to 1 h.
    pub sequence_window: Duration,
    /// `rl-group-rate`: hits a second from one address in one group. Default 200. Over it: silence or THROTTLED.
    pub group_rate: u32,
    /// `rl-group-burst`: hits at once from one address in one group. Default 50. Above 0 while the rate is.
    pub group_burst: u32,
    /// `rl-throttle-response`: say THROTTLED. Default no. Never for the limit of an address.
    pub throttle_response: bool,
    /// `limit-table-entries`: entries of each limit table. Default 65536. When full, who has used least of a limit goes.
    pub table_entries: u32,
}

/// How Redis is reached.
#[derive(Clone, Debug)]
pub struct Redis {
    /// `redis-addr`: one server, the nodes of a cluster, or sentinels. Default none. With [`Backend::Memory`] for dedup
    /// only.
    pub nodes: Vec<RedisNode>,
    /// `cache-dial-timeout`: longest time to connect. Default 1 s. Past it the cache goes on without.
    pub dial_timeout: Duration,
    /// `cache-op-timeout`: longest time of one operation. Default 1 s. Past it the operation is a miss.
    pub op_timeout: Duration,
    /// `redis-tls-ca`: PEM file of authorities. Default none: the system's. Needs `rediss://`.
    pub tls_ca: Option<PathBuf>,
    /// `redis-tls-cert`, `redis-tls-key`: PEM files of our certificate and its key. Default none. Set together.
    pub tls_client: Option<(PathBuf, PathBuf)>,
    /// `redis-retry-*`: how failures are tried again.
    pub retry: Retry,
}

/// How failures are tried again (module `retry`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retry {
    /// `*-retry-policy`: wait longer each time, or do not try again. Default exponential.
    pub policy: RetryPolicy,
    /// `*-retry-attempts`: attempts in all. Default 3.
    pub attempts: u32,
    /// `*-retry-delay`: wait before the second attempt. Default 100 ms.
    pub delay: Duration,
    /// `*-retry-factor`: growth of the wait. Default 2.
    pub factor: f32,
    /// `*-retry-max-delay`: longest wait. Default 5 s.
    pub max_delay: Duration,
    /// `*-retry-jitter`: spread the waits. Default yes.
    pub jitter: bool,
    /// `*-retry-breaker`: failures in a row that open the breaker; 0: none. Default 5 for Redis, 0 for recovery.
    pub breaker: u32,
    /// `*-retry-breaker-open`: how long it stays open. Default 5 s.
    pub breaker_open: Duration,
}

/// Which policy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RetryPolicy {
    /// One attempt.
    None,
    /// Longer waits each time.
    Exponential,
}

/// How instances keep from sending the same repair.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DedupMode {
    /// They tell each other afterwards.
    Eventual,
    /// They claim a repair before.
    Strict,
}

/// How instances keep out of each other's way; needs [`Redis::nodes`].
#[derive(Clone, Debug)]
pub struct Dedup {
    /// `dedup-window`: life of a claim. Default 60 s; zero is no claims.
    pub window: Duration,
    /// `dedup-mode`: before or afterwards. Default afterwards. Strict takes multicast out of XDP.
    pub mode: DedupMode,
    /// `dedup-repeat-after`: how long another's claim silences us, never longer than the window. Default 1 s; zero is
    /// the whole window. A listener that asks again after it gets a repair.
    pub repeat_after: Duration,
}

/// Whom we ask for what we have not.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// `proxy-enabled`: ask upstream. Default no. Beacons then announce a parent.
    pub enabled: bool,
    /// `upstream-retry-endpoints`: whom. Default none. They come before discovered ones.
    pub upstreams: Vec<HostPort>,
    /// `proxy-discover`: ask endpoints heard by beacon too. Default no.
    pub discover: bool,
    /// `proxy-select`: who is asked first. Default order.
    pub select: ProxySelect,
    /// `state-dir`: where discovered endpoints are kept. Default none: they are forgotten.
    pub state_dir: Option<PathBuf>,
    /// `proxy-timeout`: how long one may take. Default 300 ms. Past it the next is asked.
    pub timeout: Duration,
    /// `proxy-max-endpoints`: most asked for one frame. Default 0, all.
    pub max_endpoints: u32,
    /// `proxy-dedup-window`: how long one recovery stands for all instances. Default 60 s.
    pub dedup_window: Duration,
    /// `proxy-workers`: each keeps up to 256 recoveries under way. Default 4.
    pub workers: usize,
    /// `proxy-queue`: recoveries that wait. Default 1024. More are dropped and counted.
    pub queue: usize,
    /// `proxy-retry-*`: how a recovery without an answer is tried again.
    pub retry: Retry,
}

/// Which upstream is asked first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ProxySelect {
    /// As listed.
    Order,
    /// By the frame's flow.
    Hash,
    /// The fastest.
    Rtt,
}

/// How the endpoint is announced.
#[derive(Clone, Debug)]
pub struct Beacon {
    /// `beacon-enabled`: send ADVERTs. Default yes. Without them listeners need a setting of their own.
    pub enabled: bool,
    /// `beacon-tier`: at most 254. Default 0. Lower ones are asked first.
    pub tier: u8,
    /// `beacon-preference`: within the tier. Default 128. Higher ones are asked first.
    pub preference: u8,
    /// `beacon-interval`: at least 1 s. Default 60 s. Listeners forget us after three.
    pub interval: Duration,
    /// `beacon-scope`: how far. Default site. Listeners outside do not hear of us.
    pub scope: BeaconScope,
    /// `beacon-flags-draining`: announce Draining from the start. Default no. Listeners prefer others.
    pub draining: bool,
}

/// Where NACKs are answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum XdpMode {
    /// Native, else off, and the reason told.
    Auto,
    /// In the driver or not at all.
    Native,
    /// In the stack.
    Skb,
    /// By the daemon's socket.
    Off,
}

/// Who stores frames.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FillMode {
    /// The kernel, where it answers NACKs in the driver; else the daemon.
    Auto,
    /// The kernel or not at all.
    Kernel,
    /// The daemon.
    Daemon,
}

/// The program in the kernel.
#[derive(Clone, Debug)]
pub struct Xdp {
    /// `xdp`: where NACKs are answered. Default auto.
    pub mode: XdpMode,
    /// `fill`: who stores frames. Default auto.
    pub fill: FillMode,
    /// `xdp-lease`: how long the kernel answers without the daemon. Default 10 s, at least 1 s. Then it passes NACKs
    /// on.
    pub lease: Duration,
    /// `bpffs`: where maps are pinned. Default `/sys/fs/bpf/retry-endpoint`. bpftool finds them there.
    pub bpffs: PathBuf,
}

/// HTTP, and the end.
#[derive(Clone, Debug)]
pub struct Admin {
    /// `metrics-addr`: HTTP address. Default port 9400 of every address. Port 0 takes a free one.
    pub metrics_addr: SocketAddr,
    /// `admin-addr`: HTTP address of the management API. Default none: no API. Not loopback: [`Admin::token`] is set.
    pub addr: Option<SocketAddr>,
    /// The token of `admin-token-file`, else of `ADMIN_TOKEN`. Default none: every request is served.
    pub token: Option<AdminToken>,
    /// `drain-timeout`: how long a shutdown is announced. Default none. NACKs are answered meanwhile.
    pub drain_timeout: Duration,
}

/// A secret that no log line shows.
#[derive(Clone, Eq, PartialEq)]
pub struct AdminToken(pub String);

impl std::fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AdminToken(***)")
    }
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LogFormat {
    /// On stderr, for people.
    Text,
    /// On stdout, one object a line.
    Json,
}

/// Logs and traces.
#[derive(Clone, Debug)]
pub struct Telemetry {
    /// `instance`: our name in beacons, logs and claims, never empty. Default the host name. Two of one name are one
    /// endpoint to listeners.
    pub instance: String,
    /// `log-format`: how a line looks. Default text.
    pub format: LogFormat,
    /// `log-level`, at least debug with `debug`. Default info. SIGHUP and POST /loglevel change it later.
    pub level: tracing::Level,
    /// `debug`: log lines of the kernel program too. Default no. The program is slower with them.
    pub debug: bool,
    /// What goes to a collector.
    pub otlp: Otlp,
}

/// What goes to an OpenTelemetry collector.
#[derive(Clone, Debug)]
pub struct Otlp {
    /// `otlp-endpoint`: `host:port` or URL. Default none: nothing is sent.
    pub endpoint: Option<String>,
    /// `otlp-interval`: time between exports. Default 30 s.
    pub interval: Duration,
    /// `trace-sampling`: share of NACKs that are traced, 0 to 1. Default 0.
    pub sampling: f64,
}
