//! Sends repairs and answers. The ordering rule lives here only: the frame first, then its ACK, and the ACK says only
//! what left.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::ops::Range;
use std::sync::Arc;

use arc_swap::ArcSwap;
use retry_common::abi::Watched;
use retry_common::counter::{self, Counter};
use retry_common::decide::Repair;
use retry_common::group;
use retry_common::key::FrameKey;
use retry_common::wire::answer::{AckFlags, Answer};

use crate::clock::monotonic_ns;
use crate::counters::UserCounters;
use crate::fabric::{self, Fabric};
use crate::feed::Feed;
use crate::framelog::{Log, Record};
use crate::net::multicast::Egress;
use crate::net::nack_socket::NackSocket;
use crate::net::neighbours::{Gate, Release};
use crate::recovery::Job;
use crate::settings::Settings;

/// Where multicast repairs go.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// First two bytes of group addresses.
    pub group_prefix: u16,
    /// Group id.
    pub group_id: u16,
    /// Interfaces, each with the source and hop limit of repairs.
    pub egress: Vec<Egress>,
    /// Lengths of frames that are lost on their way, although the system takes them: they are not sent.
    pub lost: Range<usize>,
}

impl Config {
    /// As the settings ask, on these interfaces.
    #[must_use]
    pub(crate) fn from(settings: &Settings, fabric: &Fabric) -> Self {
        let egress = |egress: &fabric::Egress| Egress {
            interface: egress.interface.index,
            source: egress.source,
            port: settings.egress.port,
            hop_limit: settings.egress.hop_limit,
        };
        Self {
            group_prefix: settings.ingress.group_prefix,
            group_id: settings.ingress.group_id,
            egress: fabric.egress.iter().map(egress).collect(),
            lost: fabric.lost_lengths(),
        }
    }
}

/// What waits until its listener's neighbour is resolved.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Held {
    /// An answer.
    Answer(Answer, Asker),
    /// The unicast copy and the ACK of a repair.
    Rest(Rest),
    /// A recovery from upstream: upstreams are asked for nothing on behalf of a listener that does not exist.
    Recovery(Job),
}

/// What follows a repair's multicast.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rest {
    record: Record,
    plan: Repair,
    multicast_left: bool,
    to: Asker,
}

/// The listener that something is sent for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker {
    /// Its address.
    pub to: SocketAddrV6,
    /// When its NACK was taken up, nanoseconds of the monotonic clock: by this time watchers know the NACK.
    pub began_ns: u64,
}

/// Told of each multicast repair that left.
pub(crate) type OnMulticast = Box<dyn Fn(&FrameKey) + Send + Sync>;

/// Sends from the NACK socket.
pub(crate) struct Sender {
    config: ArcSwap<Config>,
    socket: Arc<NackSocket>,
    gate: Arc<Gate<Held>>,
    log: Log,
    counters: Arc<UserCounters>,
    feed: Arc<Feed>,
    on_multicast: Option<OnMulticast>,
}

impl Sender {
    /// A sender of the frames of `log`.
    pub(crate) fn new(
        config: Config,
        socket: Arc<NackSocket>,
        gate: Arc<Gate<Held>>,
        log: Log,
        counters: Arc<UserCounters>,
        feed: Arc<Feed>,
        on_multicast: Option<OnMulticast>,
    ) -> Self {
        Self { config: ArcSwap::from_pointee(config), socket, gate, log, counters, feed, on_multicast }
    }

    /// As [`NackSocket::limit_packets`].
    ///
    /// # Errors
    /// Those of it.
    pub(crate) fn limit_packets(&self, length: Option<u32>) -> io::Result<()> {
        self.socket.limit_packets(length)
    }

    /// Multicast repairs go there from now on.
    pub(crate) fn reconfigure(&self, config: Config) {
        self.config.store(Arc::new(config));
    }

    /// The log whose frames it sends.
    pub(crate) const fn log(&self) -> &Log {
        &self.log
    }

    /// The address that it sends from, unless by multicast.
    pub(crate) fn local_addr(&self) -> SocketAddrV6 {
        self.socket.local_addr()
    }

    /// Sends the frame of `record` as `plan` says, then the ACK. `frame` is a buffer to be used again.
    pub(crate) fn repair(&self, record: &Record, plan: Repair, to: Asker, frame: &mut Vec<u8>) {
        let key = record.header().key;
        frame.clear();
        if (plan.multicast || plan.unicast) && !self.log.copy(record, frame) {
            // The listener asks again and gets what is true then.
            self.counters.one(Counter::RepairTorn);
            if plan.multicast {
                self.log.release(&key);
            }
            return;
        }
        let multicast_left = plan.multicast && self.multicast(record, to, frame);
        if plan.multicast && !multicast_left {
            self.log.release(&key);
        }
        let says_something = plan.unicast || plan.ack_flags(multicast_left, false).is_some();
        let rest = Rest { record: *record, plan, multicast_left, to };
        if says_something && !self.hold(to.to, Held::Rest(rest)) {
            self.finish(&rest, frame);
        }
    }

    /// Sends the unicast copy in `frame`, and the ACK.
    fn finish(&self, rest: &Rest, frame: &[u8]) {
        let Rest { record, plan, multicast_left, to } = rest;
        let unicast_left = plan.unicast && self.unicast(*to, frame);
        if let Some(flags) = plan.ack_flags(*multicast_left, unicast_left) {
            let seq_num = record.header().key.seq_num();
            self.send_answer(&Answer::Ack { flags: AckFlags::from_bits(flags), seq_num }, *to);
        }
    }

    /// Sends one answer, at once or when its listener's neighbour is resolved.
    pub(crate) fn answer(&self, answer: &Answer, to: Asker) {
        if !self.hold(to.to, Held::Answer(*answer, to)) {
            self.send_answer(answer, to);
        }
    }

    fn send_answer(&self, answer: &Answer, to: Asker) {
        let (sent, failed) = counter::of_answer(answer);
        self.send(to, &answer.to_bytes(), sent, failed);
    }

    /// Sends a datagram to a listener.
    fn send(&self, to: Asker, bytes: &[u8], sent: Counter, failed: Counter) -> bool {
        let left = self.count(self.socket.send_unicast(to.to, bytes), sent, failed);
        if left && self.feed.wants_packets() {
            self.tell_left(to, 0, self.local_addr(), to.to, bytes);
        }
        left
    }

    /// Tells those that watch of a datagram that left.
    fn tell_left(&self, asker: Asker, ifindex: u32, source: SocketAddrV6, destination: SocketAddrV6, bytes: &[u8]) {
        let took_ns = u32::try_from(monotonic_ns().saturating_sub(asker.began_ns)).unwrap_or(u32::MAX);
        let record = Watched {
            kind: Watched::LEFT,
            at_ns: asker.began_ns,
            took_ns,
            ifindex,
            cpu: Watched::DAEMON,
            ..Watched::NONE
        };
        self.feed.tell_packet(&record, source, destination, bytes);
    }

    /// Keeps what would wait in the kernel for a neighbour; false when it would not.
    pub(crate) fn hold(&self, to: SocketAddrV6, item: Held) -> bool {
        let Some(hop) = self.gate.waits_for(to) else {
            return false;
        };
        self.counters.one(Counter::SendsHeld);
        for gone in self.gate.hold(hop, item) {
            self.drop_held(&gone, Counter::SendsCrowded);
        }
        true
    }

    /// Goes on with what waited for a neighbour; returns a recovery that may begin.
    pub(crate) fn release(&self, release: Release<Held>, frame: &mut Vec<u8>) -> Option<Job> {
        match release {
            Release::Go(Held::Answer(answer, to)) => self.send_answer(&answer, to),
            Release::Go(Held::Rest(rest)) => {
                frame.clear();
                if rest.plan.unicast && !self.log.copy(&rest.record, frame) {
                    self.counters.one(Counter::RepairTorn);
                } else {
                    self.finish(&rest, frame);
                }
            }
            Release::Go(Held::Recovery(job)) => return Some(job),
            Release::Unresolved(held) => self.drop_held(&held, Counter::SendsUnresolved),
        }
        None
    }

    fn drop_held(&self, held: &Held, why: Counter) {
        self.counters.one(why);
        match held {
            Held::Answer(answer, _) => self.counters.one(counter::of_answer(answer).1),
            Held::Rest(rest) if rest.plan.unicast => self.counters.one(Counter::RetransmitErrors),
            Held::Rest(_) => self.counters.one(Counter::AckErrors),
            Held::Recovery(_) => {
                self.counters.one(Counter::ProxyRequests);
                self.counters.one(Counter::ProxyFailedAsker);
            }
        }
    }

    /// True when the frame left by every egress interface.
    fn multicast(&self, record: &Record, asker: Asker, frame: &[u8]) -> bool {
        let config = self.config.load();
        if self.is_lost(frame) {
            return false;
        }
        let group = Ipv6Addr::from(group::address(config.group_prefix, config.group_id, record.header().group));
        let mut left = true;
        for egress in &config.egress {
            if let Err(error) = self.socket.send_multicast(egress, group, frame) {
                tracing::trace!(%error, interface = egress.interface, "a multicast repair did not leave");
                self.counters.one(Counter::RetransmitErrors);
                self.count_full(&error);
                left = false;
            } else if self.feed.wants_packets() {
                let source = SocketAddrV6::new(egress.source, self.local_addr().port(), 0, 0);
                let destination = SocketAddrV6::new(group, egress.port, 0, 0);
                self.tell_left(asker, egress.interface, source, destination, frame);
            }
        }
        if left {
            self.counters.one(Counter::Retransmits);
            if let Some(tell) = &self.on_multicast {
                tell(&record.header().key);
            }
        }
        left
    }

    fn unicast(&self, to: Asker, frame: &[u8]) -> bool {
        !self.is_lost(frame) && self.send(to, frame, Counter::UnicastRetransmits, Counter::RetransmitErrors)
    }

    /// True, and counted, when a frame would be lost on its way.
    fn is_lost(&self, frame: &[u8]) -> bool {
        let is_lost = self.config.load().lost.contains(&frame.len());
        if is_lost {
            self.counters.one(Counter::RetransmitErrors);
        }
        is_lost
    }

    fn count(&self, outcome: io::Result<()>, sent: Counter, failed: Counter) -> bool {
        match outcome {
            Ok(()) => {
                self.counters.one(sent);
                true
            }
            Err(error) => {
                tracing::trace!(%error, "a send failed");
                self.counters.one(failed);
                self.count_full(&error);
                false
            }
        }
    }

    fn count_full(&self, error: &io::Error) {
        if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS)) {
            self.counters.one(Counter::SendsBufferFull);
        }
    }
}
