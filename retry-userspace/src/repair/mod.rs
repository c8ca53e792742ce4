//! Sends repairs and answers. The ordering rule lives here only: the frame first, then its ACK, and the ACK says only
//! what left.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::sync::Arc;

use retry_common::counter::{self, Counter};
use retry_common::decide::Repair;
use retry_common::group;
use retry_common::key::FrameKey;
use retry_common::wire::answer::{AckFlags, Answer};

use crate::counters::UserCounters;
use crate::framelog::{Log, Record};
use crate::net::multicast::Egress;
use crate::net::nack_socket::NackSocket;

/// Where multicast repairs go.
#[derive(Clone, Debug)]
pub struct Route {
    /// First two bytes of group addresses.
    pub group_prefix: u16,
    /// Group id.
    pub group_id: u16,
    /// Interfaces, each with the source and hop limit of repairs.
    pub egress: Vec<Egress>,
}

/// Told of each multicast repair that left.
pub type OnMulticast = Box<dyn Fn(&FrameKey) + Send + Sync>;

/// Sends from the NACK socket.
pub struct Sender {
    socket: Arc<NackSocket>,
    route: Route,
    log: Log,
    counters: Arc<UserCounters>,
    on_multicast: Option<OnMulticast>,
}

impl Sender {
    /// A sender of the frames of `log`.
    pub const fn new(
        socket: Arc<NackSocket>,
        route: Route,
        log: Log,
        counters: Arc<UserCounters>,
        on_multicast: Option<OnMulticast>,
    ) -> Self {
        Self { socket, route, log, counters, on_multicast }
    }

    /// The log whose frames it sends.
    pub const fn log(&self) -> &Log {
        &self.log
    }

    /// Sends the frame of `record` as `plan` says, then the ACK. `frame` is a buffer to be used again.
    pub fn repair(&self, record: &Record, plan: Repair, to: SocketAddrV6, frame: &mut Vec<u8>) {
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
        let multicast_left = plan.multicast && self.multicast(record, frame);
        if plan.multicast && !multicast_left {
            self.log.release(&key);
        }
        let unicast_left = plan.unicast && self.unicast(to, frame);
        if let Some(flags) = plan.ack_flags(multicast_left, unicast_left) {
            self.answer(&Answer::Ack { flags: AckFlags::from_bits(flags), seq_num: key.seq_num() }, to);
        }
    }

    /// Sends one answer.
    pub fn answer(&self, answer: &Answer, to: SocketAddrV6) {
        let (sent, failed) = counter::of_answer(answer);
        self.count(self.socket.send_unicast(to, &answer.to_bytes()), sent, failed);
    }

    /// True when the frame left by every egress interface.
    fn multicast(&self, record: &Record, frame: &[u8]) -> bool {
        let group = Ipv6Addr::from(group::address(self.route.group_prefix, self.route.group_id, record.header().group));
        let mut left = true;
        for egress in &self.route.egress {
            if let Err(error) = self.socket.send_multicast(egress, group, frame) {
                tracing::trace!(%error, interface = egress.interface, "a multicast repair did not leave");
                self.counters.one(Counter::RetransmitErrors);
                left = false;
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

    fn unicast(&self, to: SocketAddrV6, frame: &[u8]) -> bool {
        self.count(self.socket.send_unicast(to, frame), Counter::UnicastRetransmits, Counter::RetransmitErrors)
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
                false
            }
        }
    }
}
