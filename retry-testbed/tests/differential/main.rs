//! Random conversations held three times: with the XDP program by `BPF_PROG_TEST_RUN`, with the daemon's engine, and with
//! `decide` over a model of plain collections. All three give the same answers, bytes and counters. Needs root.
//! Long because three sides are described beside each other.

mod model;
mod stack;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv6Addr, SocketAddrV6},
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{
    Rng as _, RngCore as _, SeedableRng as _,
    rngs::SmallRng,
    seq::{IndexedRandom as _, SliceRandom as _},
};
use retry_common::{
    abi::{Event, EventKind, Limits, Settings, setting_flag as flag},
    counter::Counter,
    decide::{self, Policy, Repair, Verdict},
    holddown::HoldDown,
    index,
    key::FrameKey,
    limits::{ByteBudget, ByteLimits, TokenBucket, Window},
    wire::{frame::Class, nack::Nack},
};
use retry_testbed::{
    net::packet::PacketBuilder,
    peers::answer::nack_with_flags,
    scene::is_root,
    xdp::{
        expect::{Out, compare, role},
        fixture::{Interface, Loaded, NACK_ADDRESS, Ran, difference, in_new_namespace, monotonic_ns, slow_machine},
    },
};
use retry_userspace::parts::{
    counters::UserCounters,
    engine::{self, Engine},
    framelog::{self, Log, NewFrame, Pages, Record, Sizes, Writer},
};

use crate::model::{Frame, Model, Most, Sends};

/// NACKs of one conversation.
const NACKS: usize = 20;
/// Token buckets give back one token a second: a conversation that took longer is held again.
const TOO_LONG: Duration = Duration::from_millis(900);
/// A window that no machine runs long enough to see the end of.
const FOREVER_NS: u64 = 1 << 58;
const HOUR: Duration = Duration::from_secs(3_600);
const PORT: u16 = 41_000;
/// Of the engine's own log.
const ENGINE_SEED: u64 = 0xD1FF;

const NO_BUDGET: Most =
    Most { address: 0, group: 0, sequence: 0, chain: 0, source_bytes: 0, total_bytes: 0, unproven: 0 };

/// A verdict of the daemon's engine and what it counted.
type Decided = (Verdict<Record>, Vec<(Counter, u64)>);

/// What one NACK got from each side.
struct Turn {
    key: FrameKey,
    listener: u8,
    flags: u8,
    nack: PacketBuilder,
    ran: Ran,
    events: Vec<Event>,
    engine: Decided,
    /// What the daemon makes of what the kernel handed over.
    daemon: Option<Decided>,
}

/// What shapes a conversation.
#[derive(Debug)]
struct Policies {
    flags: u32,
    most: Most,
    hold_down: bool,
    frames: Vec<Frame>,
    bytes: Vec<Vec<u8>>,
    absent: Vec<FrameKey>,
}

fn draw(random: &mut SmallRng, number: u64) -> Policies {
    let mut flags = 0;
    for (bit, one_in) in [
        (flag::MULTICAST, 2),
        (flag::UNICAST, 2),
        (flag::EGRESS_HERE, 2),
        (flag::SUPPRESS_ACK, 4),
        (flag::SUPPRESS_MISS, 4),
        (flag::THROTTLE_RESPONSE, 2),
        (flag::STORE, 8),
        (flag::RECOVERY, 6),
        (flag::DAEMON_MULTICAST, 8),
        (flag::DAEMON_FRAMES, 16),
        (flag::ANNOUNCE, 4),
    ] {
        if random.random_ratio(1, one_in) {
            flags |= bit;
        }
    }
    let mut limit = |most| if random.random_bool(0.5) { 0 } else { random.random_range(1..=most) };
    let most = Most { address: limit(19), group: limit(5), sequence: limit(4), chain: limit(8), ..NO_BUDGET };
    // In one of three conversations.
    let mut budget = |one_of: &[u32]| if random.random_bool(0.5) { 0 } else { *one_of.choose(random).expect("some") };
    let most = Most {
        source_bytes: budget(&[64, 2_000, 8_000]),
        total_bytes: budget(&[1_000, 10_000, 60_000]),
        unproven: budget(&[112, 336, 2_240]),
        ..most
    };
    let most =
        if random.random_ratio(1, 3) { most } else { Most { source_bytes: 0, total_bytes: 0, unproven: 0, ..most } };
    if most.has_budget() {
        flags |= flag::BYTE_BUDGETS;
    }
    // Keys of no other conversation: neither limits nor hold-downs are carried over. Flow 0 is exempt from one limit.
    let flows = [0xD1FF_0000_0000_0000 | number << 8, 0xD1FF_0000_0000_0000 | number << 8 | 1, 0];
    let keys: Vec<FrameKey> =
        (0..9).map(|place| FrameKey::new(flows[place % 3], number << 8 | (place as u64 + 1))).collect();
    let frames: Vec<Frame> = keys[..6]
        .iter()
        .map(|key| Frame {
            key: *key,
            group: random.random_range(0..3),
            daemon_only: random.random_ratio(1, 8),
            length: random.random_range(66..=3_392),
        })
        .collect();
    let bytes = frames
        .iter()
        .map(|frame: &Frame| {
            let mut bytes = vec![0; frame.length as usize];
            random.fill_bytes(&mut bytes);
            bytes
        })
        .collect();
    Policies { flags, most, hold_down: random.random(), frames, bytes, absent: keys[6..].to_vec() }
}

impl Policies {
    fn limits(&self) -> Limits {
        let bucket = |most| if most == 0 { TokenBucket::default() } else { TokenBucket::new(1, most) };
        Limits {
            address: bucket(self.most.address),
            group: bucket(self.most.group),
            sequence: Window::new(self.most.sequence, FOREVER_NS),
            chain: Window::new(self.most.chain, FOREVER_NS),
        }
    }

    /// A byte comes back after 2^30 ns: none does in a conversation.
    fn byte_limits(&self) -> ByteLimits {
        let budget = |most: u32| match most {
            0 => ByteBudget::default(),
            most => ByteBudget::from_words([1 << 42, u64::from(most) * ((1 << 30) + 1)]),
        };
        ByteLimits {
            source: budget(self.most.source_bytes),
            total: budget(self.most.total_bytes),
            unproven_factor: u64::from(self.most.unproven / 112),
        }
    }

    fn hold_down(&self) -> HoldDown {
        let hour = u64::try_from(HOUR.as_nanos()).expect("small");
        HoldDown { ours_ns: if self.hold_down { hour } else { 0 }, others_ns: 0 }
    }

    fn config(&self) -> engine::Config {
        engine::Config {
            policy: Policy::new(self.flags),
            limits: self.limits(),
            bytes: self.byte_limits(),
            egress_interfaces: 1,
            max_frame: 3_392,
            hold_down: self.hold_down(),
            limit_entries: 1_024,
            hash_seed: 0x5eed,
        }
    }

    const fn sends(&self) -> Sends {
        if self.flags & flag::DAEMON_FRAMES != 0 {
            return Sends::None;
        }
        Sends::Kernel { daemon_multicast: self.flags & flag::DAEMON_MULTICAST != 0 }
    }

    /// True when the kernel can send whatever a socket can.
    fn both_can_send(&self) -> bool {
        let daemons = flag::DAEMON_FRAMES | flag::DAEMON_MULTICAST;
        self.flags & daemons == 0 && self.frames.iter().all(|frame| !frame.daemon_only)
    }

    fn frame(&self, key: FrameKey) -> &[u8] {
        self.frames.iter().position(|frame| frame.key == key).map_or(&[], |place| &self.bytes[place])
    }
}

/// The sides that remember nothing of earlier conversations but their logs.
struct Sides {
    loaded: Loaded,
    base: Settings,
    writer: Writer,
    log: Log,
}

impl Sides {
    fn new() -> Self {
        let here = Interface::veth("rt0").expect("ip link works");
        let loaded = Loaded::open(&here, &[], true).expect("the kernel takes the program");
        let pages = Arc::new(Pages::plain(Sizes::new(16 << 20, 16 << 20)).expect("memory"));
        let (writer, log) = framelog::open(pages, ENGINE_SEED, 0);
        Self { base: loaded.settings(), loaded, writer, log }
    }

    fn store(&mut self, policies: &Policies) {
        for (frame, bytes) in policies.frames.iter().zip(&policies.bytes) {
            self.loaded.put(frame.key, frame.group, bytes, HOUR, frame.daemon_only);
            let (key, group) = (frame.key, frame.group);
            let new = NewFrame { key, class: Class::Tx, group, life_ms: 3_600_000, daemon_only: false, bytes };
            self.writer.put(&new, monotonic_ns(), |_| {});
        }
        // What is there and too old is not there.
        self.loaded.put(policies.absent[0], 0, &[7; 100], Duration::ZERO, false);
    }

    /// True when two frames share a word of the hold-down table, where one takes over the other's claim.
    fn share_a_hold_down(&self, policies: &Policies) -> bool {
        let seeds = [self.base.hash_seed, ENGINE_SEED];
        seeds.into_iter().any(|seed| {
            let word = |frame: &Frame| index::bucket(index::hash(&frame.key, seed), self.base.hold_down_mask);
            let words: BTreeSet<u32> = policies.frames.iter().map(word).collect();
            words.len() < policies.frames.len()
        })
    }

    fn hold(&mut self, policies: &Policies, random: &mut SmallRng, number: u64) -> Vec<Turn> {
        self.store(policies);
        let (limits, bytes) = (policies.limits(), policies.byte_limits());
        self.loaded.bytes().forget_sources();
        self.loaded.bytes().forget_total();
        let hold_down = policies.hold_down();
        self.loaded.set(Settings { flags: policies.flags, limits, bytes, hold_down, ..self.base });
        let (own, joint) = (Arc::new(UserCounters::default()), Arc::new(UserCounters::default()));
        let engine = Engine::new(policies.config(), self.log.clone(), Arc::clone(&own), None).expect("memory");
        let daemon =
            Engine::new(policies.config(), self.loaded.log().clone(), Arc::clone(&joint), None).expect("memory");
        // The budgets are one for both sides.
        let daemon = daemon.sharing(self.loaded.bytes().clone());
        let mut keys: Vec<FrameKey> =
            policies.frames.iter().map(|frame| frame.key).chain(policies.absent.iter().copied()).collect();
        // Few keys in some conversations, so that their limits are reached.
        keys.shuffle(random);
        let keys = &keys[..random.random_range(1..=keys.len())];
        let mut turn = |_| {
            let key = *keys.choose(random).expect("one at least");
            let listener = random.random_range(0..3);
            let flags = if random.random_ratio(1, 5) { random.random::<u8>() } else { 0 };
            let source = Ipv6Addr::from(0xFD10_0000_0000_0002 << 64 | u128::from(number) << 8 | u128::from(listener));
            let bytes = nack_with_flags(key, flags);
            let nack = PacketBuilder::udp(SocketAddrV6::new(source, PORT, 0, 0), NACK_ADDRESS, &bytes);
            let parsed = Nack::parse(&bytes).expect("a NACK");
            let ran = self.loaded.run(&nack.build()).expect("a legal length");
            let events = self.loaded.take_events();
            let before = own.snapshot();
            let verdict = engine.handle_nack(&parsed, source, monotonic_ns());
            let engine = (verdict, difference(&before, &own.snapshot()));
            let daemon = events.first().filter(|event| event.kind == EventKind::Send as u8).map(|_| {
                let before = joint.snapshot();
                let verdict = daemon.handle_send(&parsed, source, monotonic_ns());
                (verdict, difference(&before, &joint.snapshot()))
            });
            Turn { key, listener, flags, nack, ran, events, engine, daemon }
        };
        (0..NACKS).map(&mut turn).collect()
    }
}

/// What the XDP program does for a verdict, and what it counts beside what `decide` counts.
fn kernel_does(verdict: &Verdict<Frame>, flags: u32) -> (Out, Vec<Counter>) {
    match *verdict {
        Verdict::Silence => (Out::Silence, vec![]),
        Verdict::Throttled(bucket) => (Out::Throttled(bucket), vec![Counter::ThrottledSent]),
        Verdict::Miss => (Out::Miss, vec![Counter::MissesSent]),
        Verdict::Recover { say: true } => (Out::MissAndHandOver, vec![Counter::MissesSent, Counter::HandedOver]),
        Verdict::Recover { say: false } => (Out::HandOver(EventKind::Recover), vec![Counter::HandedOver]),
        Verdict::AskStore => (Out::HandOver(EventKind::Store), vec![Counter::HandedOver]),
        Verdict::Relieve => (Out::HandOver(EventKind::Known), vec![Counter::HandedOver]),
        Verdict::HandOver(_) => (Out::HandOver(EventKind::Send), vec![Counter::HandedOver]),
        Verdict::Repair(_, plan) => repair(&plan, flags),
    }
}

fn repair(plan: &Repair, settings: u32) -> (Out, Vec<Counter>) {
    let (egress_here, announce) = (settings & flag::EGRESS_HERE != 0, settings & flag::ANNOUNCE != 0);
    let flags = u8::from(plan.multicast || plan.held) | u8::from(plan.unicast) << 1;
    let ack = plan.ack && (flags != 0 || plan.bare);
    let counted =
        [(Counter::AcksSent, ack), (Counter::UnicastRetransmits, plan.unicast), (Counter::Retransmits, plan.multicast)];
    let counted = counted.into_iter().filter(|(_, sent)| *sent).map(|(counter, _)| counter).collect();
    let roles = if ack { role::ACK } else { 0 }
        | if plan.unicast { role::UNI } else { 0 }
        | if plan.multicast && egress_here { role::MULTI } else { 0 }
        | role::LEADS;
    let out = match (ack, plan.unicast, plan.multicast) {
        (false, false, false) => Out::Silence,
        (true, false, false) => Out::Ack(flags),
        (false, true, false) => Out::Frame,
        (.., true) if announce => Out::ClonesAndEvent(if ack { flags } else { 0 }, roles),
        _ => Out::Clones(if ack { flags } else { 0 }, roles),
    };
    (out, counted)
}

/// How often each counter stands in a list, in the order of the map.
fn tally(counted: &[Counter]) -> Vec<(Counter, u64)> {
    let times = |counter: &Counter| counted.iter().filter(|one| *one == counter).count() as u64;
    Counter::ALL.iter().map(|counter| (*counter, times(counter))).filter(|(_, times)| *times != 0).collect()
}

/// The same verdict about the same frame.
fn agree(engine: &Verdict<Record>, model: &Verdict<Frame>) -> bool {
    let same = |record: &Record, frame: &Frame| {
        let header = record.header();
        (header.key, header.group) == (frame.key, frame.group)
    };
    match (engine, model) {
        (Verdict::Silence, Verdict::Silence)
        | (Verdict::Miss, Verdict::Miss)
        | (Verdict::AskStore, Verdict::AskStore) => true,
        (Verdict::Throttled(a), Verdict::Throttled(b)) => a == b,
        (Verdict::Recover { say: a }, Verdict::Recover { say: b }) => a == b,
        (Verdict::Repair(record, a), Verdict::Repair(frame, b)) => same(record, frame) && a == b,
        (Verdict::HandOver(record), Verdict::HandOver(frame)) => same(record, frame),
        _ => false,
    }
}

/// Compares every turn with the model; returns how often each verdict came.
fn judge(loaded: &Loaded, policies: &Policies, turns: &[Turn], name: &str, seen: &mut Seen) {
    let model = |sends| Model::new(policies.most, sends, policies.hold_down, &policies.frames);
    let (mut kernel, mut socket) = (model(policies.sends()), model(Sends::All));
    let policy = Policy::new(policies.flags);
    for (number, turn) in turns.iter().enumerate() {
        let Policies { flags, most, hold_down, frames, .. } = policies;
        let asker = turn.listener;
        let name = format!(
            "{name}, NACK {number} for {} from listener {asker}\nflags {flags:#x}, {most:?}, hold-down {hold_down}, {frames:x?}",
            turn.key
        );
        // The highest bit of the flags is no part of what it asks.
        let nack = Nack { flags: turn.flags & 0x7F, key: turn.key, subtree_id: [0; 32] };

        let mut at = kernel.at(turn.key, turn.listener);
        let by_kernel = decide::decide(&nack, policy, &mut at);
        let (out, extra) = kernel_does(&by_kernel, policies.flags);
        let counted = tally(&[at.counted, extra, vec![Counter::NackRequests]].concat());
        assert_eq!(turn.ran.counted, counted, "{name}\n{by_kernel:?}: the kernel's counters");
        let asked = (turn.key, policies.frame(turn.key));
        compare(loaded, &name, &turn.nack, asked, out, &turn.ran, &turn.events);
        seen.count(out);
        for (counter, name) in Seen::BUDGETS {
            if turn.ran.counted.contains(&(counter, 1)) {
                *seen.0.entry(name).or_default() += 1;
            }
        }

        if let Verdict::HandOver(_) = by_kernel {
            let mut at = kernel.at(turn.key, turn.listener);
            // The daemon can send what the kernel cannot; the hold-down is one for both.
            (at.admitted, at.sends) = (true, Sends::All);
            let wanted = decide::handed_over(&nack, policy, &mut at);
            let counted = tally(&at.counted);
            let (got, got_counted) = turn.daemon.as_ref().expect("handed over");
            assert!(agree(got, &wanted), "{name}\nthe daemon {got:?}\nmodel {wanted:?}");
            assert_eq!(*got_counted, counted, "{name}: the daemon's counters");
        }

        let mut at = socket.at(turn.key, turn.listener);
        let by_socket = decide::decide(&nack, policy, &mut at);
        let (got, counted) = &turn.engine;
        assert!(agree(got, &by_socket), "{name}\nengine {got:?}\nmodel  {by_socket:?}");
        assert_eq!(*counted, tally(&at.counted), "{name}\n{by_socket:?}: the engine's counters");
        if policies.both_can_send() {
            assert_eq!(by_kernel, by_socket, "{name}: the two sides");
        }
    }
}

/// How often each outcome came.
#[derive(Debug, Default)]
struct Seen(BTreeMap<&'static str, u32>);

impl Seen {
    /// All that must come often, or the draw is not worth its time.
    const OUTCOMES: [&'static str; 10] =
        ["silence", "miss", "ack", "throttled", "frame", "clones", "announced", "handed over", "store", "recover"];

    /// What the budgets in bytes refuse.
    const BUDGETS: [(Counter, &'static str); 3] = [
        (Counter::LimitedSourceBytes, "over a source's budget"),
        (Counter::LimitedTotalBytes, "over the total budget"),
        (Counter::LimitedUnproven, "unproven"),
    ];

    fn count(&mut self, out: Out) {
        let name = match out {
            Out::Silence | Out::Pass => "silence",
            Out::Miss => "miss",
            Out::Ack(_) => "ack",
            Out::Throttled(_) => "throttled",
            Out::Frame => "frame",
            Out::Clones(..) => "clones",
            Out::ClonesAndEvent(..) | Out::HandOver(EventKind::Repaired) => "announced",
            Out::HandOver(EventKind::Send) => "handed over",
            Out::HandOver(EventKind::Known) => "known",
            Out::HandOver(EventKind::Store) => "store",
            Out::HandOver(EventKind::Recover) | Out::MissAndHandOver => "recover",
        };
        *self.0.entry(name).or_default() += 1;
    }
}

#[test]
fn kernel_engine_and_model_agree() {
    const NAME: &str = "kernel_engine_and_model_agree";
    if !is_root(NAME) {
        return;
    }
    let seed = std::env::var("RETRY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_121);
    let conversations = if slow_machine() { 50 } else { 1_000 };
    println!("RETRY_SEED={seed}");
    in_new_namespace(|| {
        let mut sides = Sides::new();
        let (mut seen, mut judged, mut number) = (Seen::default(), 0, 0);
        while judged < conversations {
            number += 1;
            assert!(number < 2 * conversations, "{judged} of {number} conversations were quick enough");
            let mut random = SmallRng::seed_from_u64(seed ^ number << 32);
            let policies = draw(&mut random, number);
            if sides.share_a_hold_down(&policies) {
                continue;
            }
            let start = Instant::now();
            let turns = sides.hold(&policies, &mut random, number);
            if start.elapsed() < TOO_LONG {
                let name = format!("RETRY_SEED={seed}, conversation {number}");
                judge(&sides.loaded, &policies, &turns, &name, &mut seen);
                judged += 1;
            }
        }
        println!("{} NACKs: {seen:?}", judged * NACKS as u64);
        for outcome in Seen::OUTCOMES.into_iter().chain(Seen::BUDGETS.map(|(_, name)| name)) {
            let times = seen.0.get(outcome).copied().unwrap_or(0);
            assert!(u64::from(times) > conversations / 10, "{outcome} came {times} times: {seen:?}");
        }
    });
}
