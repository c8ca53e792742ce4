//! What the daemon answers: `retry_common::decide` over the daemon's own tables. No sockets and no clock in here: a NACK
//! and a time go in, a verdict comes out, and the caller carries it out.

use std::io;
use std::net::Ipv6Addr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use retry_common::abi::{self, Limits};
use retry_common::counter::Counter;
use retry_common::decide::{self, Endpoint, Multicast, Policy, Repair, Verdict};
use retry_common::holddown::HoldDown;
use retry_common::key::FrameKey;
use retry_common::limits::bytes::{self, ANSWER_BYTES, Afforded, Leaving};
use retry_common::limits::{ByteLimits, TokenBucket};
use retry_common::wire::nack::Nack;

use crate::acl::Acl;
use crate::counters::UserCounters;
use crate::framelog::{Log, Record};
use crate::limits::{AddressTable, ByteCase, ByteTables, Changed, GroupTable, KnownListeners, LimitTables};
use crate::settings::Settings;

/// What shapes the answers.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The operator's choices.
    pub policy: Policy,
    /// The four limits.
    pub limits: Limits,
    /// The budgets in bytes.
    pub bytes: ByteLimits,
    /// How many interfaces a multicast repair leaves by.
    pub egress_interfaces: u32,
    /// Longest frame that leaves in one packet, bytes.
    pub max_frame: u32,
    /// The hold-down.
    pub hold_down: HoldDown,
    /// Entries of each limit table.
    pub limit_entries: u32,
    /// What their hashes begin with, which no sender knows.
    pub hash_seed: u64,
}

impl Config {
    /// What the kernel program goes by too, and the size of the daemon's own tables.
    #[must_use]
    pub fn from(settings: &Settings, kernel: &abi::Settings) -> Self {
        Self {
            policy: Policy::new(kernel.flags),
            limits: kernel.limits,
            bytes: kernel.bytes,
            egress_interfaces: u32::from(kernel.egress_interfaces),
            max_frame: kernel.max_frame,
            hold_down: kernel.hold_down,
            limit_entries: settings.limits.table_entries,
            hash_seed: kernel.hash_seed,
        }
    }
}

/// Who charged a NACK before it came to wait for an answer from elsewhere.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Admitted {
    /// The daemon's own tables, at the socket.
    Here,
    /// The kernel's.
    Kernel,
}

/// The kernel's limit of (source, group): the one limit that is charged only once the frame is known, which for a frame
/// of the shared store is in the daemon.
pub trait GroupLimit: Send + Sync {
    /// Takes a token of the source and group in the table that the kernel charges; true when there was one.
    fn take_group(&self, source: [u8; 16], group: u16, bucket: &TokenBucket, now_ns: u64) -> bool;
}

impl GroupLimit for GroupTable {
    fn take_group(&self, source: [u8; 16], group: u16, bucket: &TokenBucket, now_ns: u64) -> bool {
        self.take(source, group, bucket, now_ns)
    }
}

/// A verdict, and the counter that says why.
pub(crate) type Judged = (Verdict<Record>, Option<Counter>);

/// Decides on NACKs that the kernel did not answer.
pub struct Engine {
    config: ArcSwap<Config>,
    tables: LimitTables,
    kernel_groups: Option<Box<dyn GroupLimit>>,
    log: Log,
    counters: Arc<UserCounters>,
    known: Arc<KnownListeners>,
    bytes: ByteTables,
    acl: Option<Arc<Acl>>,
}

impl Engine {
    /// An engine over the frames of `log`; `kernel_groups` where there is a kernel side.
    ///
    /// # Errors
    /// The limit tables cannot be mapped.
    pub fn new(
        config: Config,
        log: Log,
        counters: Arc<UserCounters>,
        kernel_groups: Option<Box<dyn GroupLimit>>,
    ) -> io::Result<Self> {
        let tables = LimitTables::new(config.limit_entries, config.hash_seed)?;
        let bytes = ByteTables::plain(&config.bytes, config.limit_entries, config.hash_seed)?;
        let config = ArcSwap::from_pointee(config);
        Ok(Self { config, tables, kernel_groups, log, counters, known: Arc::default(), bytes, acl: None })
    }

    /// Charges the budgets in bytes there, where the kernel program does.
    #[must_use]
    pub fn sharing(self, bytes: ByteTables) -> Self {
        Self { bytes, ..self }
    }

    /// Takes sources that these lists allow for such as have shown that they hear us.
    pub(crate) fn listing(self, acl: Arc<Acl>) -> Self {
        Self { acl: Some(acl), ..self }
    }

    /// Serves these listeners although the window of a frame is used up.
    pub(crate) fn knowing(mut self, known: Arc<KnownListeners>) -> Self {
        self.known = known;
        self
    }

    /// The table of addresses, for who looks who has asked.
    pub(crate) fn addresses(&self) -> AddressTable {
        self.tables.addresses()
    }

    /// NACKs are judged by this from now on; the tables stay as large as they are.
    pub(crate) fn change(&self, config: Config) {
        self.config.store(Arc::new(config));
    }

    /// Lets every key of these limits begin anew, in the daemon's own tables.
    pub(crate) fn forget(&self, limits: Changed) {
        self.tables.forget(limits);
        if limits.source_bytes {
            self.bytes.forget_sources();
        }
        if limits.total_bytes {
            self.bytes.forget_total();
        }
    }

    /// What a NACK from `source` gets at `now_ns`, and why: the counter that was counted last.
    pub(crate) fn judge_nack(&self, nack: &Nack, source: Ipv6Addr, now_ns: u64) -> Judged {
        let mut case = self.case(nack, source, now_ns);
        let verdict = match decide::decide(nack, case.config.policy, &mut case) {
            Verdict::Relieve => decide::relieve(nack, case.config.policy, &mut case),
            verdict => verdict,
        };
        (verdict, case.last)
    }

    /// What a NACK of a known listener gets that the kernel leaves to the daemon because the window of its frame is full. All
    /// other limits are the daemon's own.
    pub(crate) fn judge_known(&self, nack: &Nack, source: Ipv6Addr, now_ns: u64) -> Judged {
        let mut case = self.case(nack, source, now_ns);
        (decide::relieve(nack, case.config.policy, &mut case), case.last)
    }

    /// What is decided on a NACK from `source`.
    pub fn handle_nack(&self, nack: &Nack, source: Ipv6Addr, now_ns: u64) -> Verdict<Record> {
        self.judge_nack(nack, source, now_ns).0
    }

    /// What a NACK gets that the kernel admitted, charged for every limit, and cannot send the frame for.
    pub(crate) fn judge_send(&self, nack: &Nack, source: Ipv6Addr, now_ns: u64) -> Judged {
        let mut case = Case { admitted: Some(Admitted::Kernel), ..self.case(nack, source, now_ns) };
        // Where the frame was lapped or has expired since the kernel's look-up, that counted a hit.
        (decide::handed_over(nack, case.config.policy, &mut case), case.last)
    }

    /// The verdict of what the kernel hands over, alone.
    pub fn handle_send(&self, nack: &Nack, source: Ipv6Addr, now_ns: u64) -> Verdict<Record> {
        self.judge_send(nack, source, now_ns).0
    }

    /// What a NACK gets that had to wait for the shared store, now that it has answered: the frame is in the log by now,
    /// or there is no such frame.
    pub(crate) fn judge_asked(&self, nack: &Nack, source: Ipv6Addr, admitted: Admitted, now_ns: u64) -> Judged {
        let mut case = Case { admitted: Some(admitted), ..self.case(nack, source, now_ns) };
        (decide::answered(nack, case.config.policy, &mut case), case.last)
    }

    /// What leaves for a frame that an upstream endpoint sent: a repair into our domain, and no ACK, for the MISS was said
    /// long ago. `None` when there is nothing to send. Each way of repair that is on is used: multicast, and a copy to each
    /// listener that asked and may have it (`affords_copy`).
    pub fn handle_recovered(&self, key: &FrameKey, now_ns: u64) -> Option<(Record, Repair)> {
        let (record, config) = (self.log.look_up(key, now_ns)?, self.config.load());
        let mut plan = Repair { unicast: config.policy.unicasts(), ..Repair::default() };
        let may_claim = || {
            let is_free = self.log.peek(key, &config.hold_down, now_ns) == Multicast::Claimed;
            let all = bytes::packet(record.header().length, config.max_frame) * config.egress_interfaces;
            let leaving = Leaving { to_source: 0, all, before: 0 };
            // A frame that is held down takes nothing, and the claim counts it.
            !is_free || self.affords(&config, Ipv6Addr::UNSPECIFIED, leaving, now_ns)
        };
        if config.policy.multicasts() && may_claim() {
            match self.log.claim(key, &config.hold_down, now_ns) {
                Multicast::Claimed => plan.multicast = true,
                Multicast::HeldByUs => self.counters.one(Counter::RetransmitHeldDown),
                Multicast::HeldByAnother => self.counters.one(Counter::RetransmitDedup),
            }
        }
        (plan.multicast || plan.unicast).then_some((record, plan))
    }

    /// True when a copy of a recovered frame may leave to this listener, which is then charged. It got a MISS before.
    pub(crate) fn affords_copy(&self, record: &Record, listener: Ipv6Addr, now_ns: u64) -> bool {
        let config = self.config.load();
        let packet = bytes::packet(record.header().length, config.max_frame);
        self.affords(&config, listener, Leaving { to_source: packet, all: packet, before: ANSWER_BYTES }, now_ns)
    }

    fn affords(&self, config: &Config, listener: Ipv6Addr, leaving: Leaving, now_ns: u64) -> bool {
        if config.bytes.is_off() {
            return true;
        }
        let afforded = self.afford(config, listener.octets(), leaving, now_ns);
        if let Some(counter) = decide::refused(afforded) {
            self.counters.one(counter);
        }
        afforded == Afforded::Yes
    }

    fn afford(&self, config: &Config, source: [u8; 16], leaving: Leaving, now_ns: u64) -> Afforded {
        let is_proven = || self.known.is_known(&source) || self.acl.as_ref().is_some_and(|acl| acl.has_allow_list());
        ByteCase { tables: &self.bytes, limits: &config.bytes, source, is_proven, leaving, now_ns }.afford()
    }

    fn case<'a>(&'a self, nack: &'a Nack, source: Ipv6Addr, now_ns: u64) -> Case<'a> {
        let config = **self.config.load();
        Case { engine: self, config, nack, source: source.octets(), now_ns, admitted: None, last: None }
    }
}

/// One NACK, as the truth table sees it from here.
struct Case<'a> {
    engine: &'a Engine,
    /// As it was when the NACK came to be judged: a change of settings divides no decision.
    config: Config,
    nack: &'a Nack,
    source: [u8; 16],
    now_ns: u64,
    /// Who charged the limits before.
    admitted: Option<Admitted>,
    /// What was counted last.
    last: Option<Counter>,
}

impl Endpoint for Case<'_> {
    type Frame = Record;

    fn take_address(&mut self) -> bool {
        self.engine.tables.take_address(self.source, &self.config.limits.address, self.now_ns)
    }

    fn sequence_is_over(&mut self) -> bool {
        self.engine.tables.sequence_is_over(self.nack.key, &self.config.limits.sequence, self.now_ns)
    }

    fn take_sequence(&mut self) -> bool {
        self.admitted.is_some()
            || self.engine.tables.take_sequence(self.nack.key, &self.config.limits.sequence, self.now_ns)
    }

    fn is_known(&mut self) -> bool {
        self.engine.known.is_known(&self.source)
    }

    fn take_chain(&mut self) -> bool {
        let hash_key = self.nack.key.hash_key();
        self.engine.tables.take_chain(self.source, hash_key, &self.config.limits.chain, self.now_ns)
    }

    fn look_up(&mut self) -> Option<Record> {
        self.engine.log.look_up(&self.nack.key, self.now_ns)
    }

    fn take_group(&mut self, group: u16) -> bool {
        let bucket = &self.config.limits.group;
        match (self.admitted, &self.engine.kernel_groups) {
            (Some(Admitted::Kernel), Some(groups)) => groups.take_group(self.source, group, bucket, self.now_ns),
            _ => self.engine.tables.take_group(self.source, group, bucket, self.now_ns),
        }
    }

    /// A socket sends any frame; one that fails shows when it does.
    fn can_send(&mut self, _frame: &Record, _multicast: bool, _ack: bool) -> bool {
        true
    }

    fn packet_bytes(&self, record: &Record) -> u32 {
        bytes::packet(record.header().length, self.config.max_frame)
    }

    fn egress_interfaces(&self) -> u32 {
        self.config.egress_interfaces
    }

    fn afford(&mut self, leaving: &Leaving) -> Afforded {
        self.engine.afford(&self.config, self.source, *leaving, self.now_ns)
    }

    fn claim_multicast(&mut self) -> Multicast {
        self.engine.log.claim(&self.nack.key, &self.config.hold_down, self.now_ns)
    }

    fn peek_multicast(&mut self) -> Multicast {
        self.engine.log.peek(&self.nack.key, &self.config.hold_down, self.now_ns)
    }

    fn count(&mut self, counter: Counter) {
        self.engine.counters.one(counter);
        self.last = Some(counter);
    }
}
