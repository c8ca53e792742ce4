//! What the daemon answers: `retry_common::decide` over the daemon's own tables. No sockets and no clock in here: a NACK
//! and a time go in, a verdict comes out, and whoever called carries it out.

mod tables;

use std::net::Ipv6Addr;
use std::sync::Arc;

use retry_common::abi::Limits;
use retry_common::counter::Counter;
use retry_common::decide::{self, Endpoint, Multicast, Policy, Verdict};
use retry_common::holddown::HoldDown;
use retry_common::wire::nack::Nack;

use crate::counters::UserCounters;
use crate::framelog::{Log, Record};
use tables::Tables;

/// What shapes the answers.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The operator's choices.
    pub policy: Policy,
    /// The four limits.
    pub limits: Limits,
    /// The hold-down.
    pub hold_down: HoldDown,
    /// Entries of each limit table.
    pub limit_entries: u32,
}

/// Decides on NACKs that the kernel did not answer.
#[derive(Debug)]
pub struct Engine {
    rules: Rules,
    tables: Tables,
    log: Log,
    counters: Arc<UserCounters>,
}

impl Engine {
    /// An engine over the frames of `log`.
    pub fn new(rules: Rules, log: Log, counters: Arc<UserCounters>) -> Self {
        Self { rules, tables: Tables::new(rules.limit_entries), log, counters }
    }

    /// What a NACK from `source` gets at `now_ns`.
    pub fn handle_nack(&self, nack: &Nack, source: Ipv6Addr, now_ns: u64) -> Verdict<Record> {
        decide::decide(nack, self.rules.policy, &mut self.case(nack, source, now_ns))
    }

    /// What a NACK gets that the kernel admitted, charged for every limit, and cannot send the frame for.
    pub fn handle_send(&self, nack: &Nack, source: Ipv6Addr, now_ns: u64) -> Verdict<Record> {
        let mut case = Case { admitted: true, ..self.case(nack, source, now_ns) };
        match case.look_up() {
            Some(record) => decide::repair(nack, self.rules.policy, record, &mut case),
            // Lapped or expired between the kernel's look-up and ours; it counted a hit.
            None => decide::missed(nack, self.rules.policy, &mut case),
        }
    }

    fn case<'a>(&'a self, nack: &'a Nack, source: Ipv6Addr, now_ns: u64) -> Case<'a> {
        Case { engine: self, nack, source: source.octets(), now_ns, admitted: false }
    }
}

/// One NACK, as the truth table sees it from here.
struct Case<'a> {
    engine: &'a Engine,
    nack: &'a Nack,
    source: [u8; 16],
    now_ns: u64,
    /// The kernel has charged every limit.
    admitted: bool,
}

impl Endpoint for Case<'_> {
    type Frame = Record;

    fn take_address(&mut self) -> bool {
        self.engine.tables.take_address(self.source, &self.engine.rules.limits.address, self.now_ns)
    }

    fn sequence_is_over(&mut self) -> bool {
        self.engine.tables.sequence_is_over(self.nack.key, &self.engine.rules.limits.sequence, self.now_ns)
    }

    fn charge_sequence(&mut self) {
        if self.admitted {
            return;
        }
        self.engine.tables.charge_sequence(self.nack.key, &self.engine.rules.limits.sequence, self.now_ns);
    }

    fn take_chain(&mut self) -> bool {
        let hash_key = self.nack.key.hash_key();
        self.engine.tables.take_chain(self.source, hash_key, &self.engine.rules.limits.chain, self.now_ns)
    }

    fn look_up(&mut self) -> Option<Record> {
        self.engine.log.look_up(&self.nack.key, self.now_ns)
    }

    fn take_group(&mut self, group: u16) -> bool {
        self.engine.tables.take_group(self.source, group, &self.engine.rules.limits.group, self.now_ns)
    }

    /// A socket sends any frame; one that fails shows when it does.
    fn can_send(&mut self, _frame: &Record, _multicast: bool, _unicast: bool) -> bool {
        true
    }

    fn claim_multicast(&mut self) -> Multicast {
        self.engine.log.claim(&self.nack.key, &self.engine.rules.hold_down, self.now_ns)
    }

    fn count(&mut self, counter: Counter) {
        self.engine.counters.one(counter);
    }
}
