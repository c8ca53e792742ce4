//! The fabric of these tests: two endpoints, a publisher, listeners, a Redis; and what is asked of them.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use retry_common::key::FrameKey;
use retry_testbed::daemon::{Daemon, http};
use retry_testbed::net::capture::{Capture, Captured, is_udp};
use retry_testbed::net::fabric::{DATA_PORT, Fabric, Host, INTERFACE, group};
use retry_testbed::net::loss::{Loss, LossRule};
use retry_testbed::net::packet::{Packet, ParsedPacket};
use retry_testbed::peers::answer::{Answer, nack};
use retry_testbed::peers::journal::{Journal, key_of};
use retry_testbed::peers::listener::{Listener, ListenerSettings, Stats};
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{PATIENCE, ask, binary, eventually, flags};

use super::redis_server::RedisServer;

/// How long a listener waits for its first answer.
pub(crate) const LISTENERS_PATIENCE: Duration = Duration::from_millis(300);
/// The ACK of a repair by multicast.
pub(crate) const BY_MULTICAST: Answer = Answer::Ack { multicast: true, unicast: false };

/// The hosts and what joins them.
pub(crate) struct Site {
    pub(crate) fabric: Fabric,
    journal: Arc<Journal>,
}

impl Site {
    pub(crate) fn new() -> Self {
        let hosts = ["one", "two", "up", "publisher", "client", "other", "redis"];
        Self { fabric: Fabric::bridged(&hosts, 1500).expect("a fabric"), journal: Arc::new(Journal::new()) }
    }

    pub(crate) fn host(&self, name: &str) -> &Host {
        self.fabric.host(name).expect("a host of this name")
    }

    pub(crate) fn redis(&self) -> RedisServer<'_> {
        RedisServer::start(self.host("redis"))
    }

    /// An instance named as its host, connected to this Redis, that is a member of the groups; later flags win.
    pub(crate) fn endpoint(&self, name: &str, xdp: &str, redis: &str, more: &[&str]) -> Daemon<'_> {
        let daemon = self.unconnected(name, xdp, redis, more);
        eventually("a connection", || told(&daemon, "connected to the shared store") == 1);
        daemon
    }

    /// As [`Site::endpoint`], where Redis may not take the connection.
    pub(crate) fn unconnected(&self, name: &str, xdp: &str, redis: &str, more: &[&str]) -> Daemon<'_> {
        let mut all = vec!["-instance", name, "-beacon-enabled=false", "-redis-addr", redis];
        all.extend(more);
        self.daemon(name, xdp, &all)
    }

    /// As [`Site::endpoint`], without a Redis.
    pub(crate) fn daemon(&self, name: &str, xdp: &str, more: &[&str]) -> Daemon<'_> {
        let daemon = Daemon::start(&binary(), &self.host(name).ns, &flags(xdp, more)).expect("a daemon");
        self.fabric.await_members(name, &[group(0)]).expect("a member");
        daemon
    }

    /// What the publisher sends does not reach this host; what others send does.
    pub(crate) fn deafen(&self, name: &str) -> Loss<'_> {
        let rule = LossRule::random(1000).from(self.host("publisher").addr);
        self.fabric.lose(name, &rule).expect("a loss")
    }

    pub(crate) fn publisher(&self) -> Publisher {
        Publisher::open(&self.host("publisher").ns, Arc::clone(&self.journal)).expect("a publisher")
    }

    /// A member of these groups on the host `client`, and what reaches it.
    pub(crate) fn watch(&self, groups: &[Ipv6Addr]) -> Watch {
        let client = self.host("client");
        let mut settings = ListenerSettings::new(groups.to_vec(), self.host("one").nack_address());
        settings.ask = false;
        let listener = Listener::start(&client.ns, settings, Arc::clone(&self.journal)).expect("a listener");
        self.fabric.await_members("client", groups).expect("a member");
        let capture = Capture::start(&client.ns, INTERFACE).expect("a capture");
        Watch { capture, listener }
    }
}

/// A listener that asks for nothing, and a capture before it.
pub(crate) struct Watch {
    capture: Capture,
    listener: Listener,
}

impl Watch {
    /// Waits for this many multicast repairs of a frame, and then for more than these; returns all.
    pub(crate) fn repairs(&self, key: FrameKey, count: usize) -> Vec<ParsedPacket> {
        let deadline = Instant::now() + PATIENCE;
        while self.seen(key).len() < count && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        // One too many comes together with the last.
        std::thread::sleep(Duration::from_millis(200));
        self.seen(key)
    }

    /// The multicast repairs of a frame so far, each a right packet.
    pub(crate) fn seen(&self, key: FrameKey) -> Vec<ParsedPacket> {
        let repair = |packet: &Captured| {
            let packet = is_udp(&packet.bytes).then(|| Packet::check(&packet.bytes).expect("a right packet"))?;
            let repair = packet.dst.ip().is_multicast() && (packet.src.port(), packet.dst.port()) == (9300, DATA_PORT);
            (repair && key_of(&packet.payload) == Some(key)).then_some(packet)
        };
        self.capture.seen().iter().filter_map(repair).collect()
    }

    /// Ends it; everything that it received was what was published.
    pub(crate) fn end(self) -> Stats {
        let stats = self.listener.stop().expect("it ends");
        assert_eq!((stats.wrong_bytes, &stats.complaints), (0, &vec![]), "byte for byte");
        stats
    }
}

/// Asks for a frame and reads the one answer that comes by itself; `None` after silence.
pub(crate) fn answer(socket: &UdpSocket, to: SocketAddrV6, key: FrameKey) -> Option<Answer> {
    // A busy machine may be late; a listener's patience is proved where it matters.
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let answers = ask(socket, to, &nack(key), 1);
    answers.first().map(|bytes| Answer::parse(bytes, key.seq_num()).expect("an answer"))
}

/// A request to the management API at `[::1]:9401` of a host: the status, and the body as bytes.
pub(crate) fn api(host: &Host, method: &str, path: &str, token: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let address = SocketAddr::from((Ipv6Addr::LOCALHOST, 9401));
    http::exchange(&host.ns, address, method, path, Some(token), body).expect("the management API answers")
}

/// How often a daemon's log has these words.
pub(crate) fn told(daemon: &Daemon<'_>, words: &str) -> usize {
    daemon.log().lines().filter(|line| line.contains(words)).count()
}
