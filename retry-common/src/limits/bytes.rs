//! Budgets in bytes: how much may leave in answer to NACKs, to one address and to all, and to an address that has not shown that
//! it hears us. Step 11 of docs/nack-decision.md.
//!
//! Bytes are those of IPv6 packets, headers included. [`afford`] is the one function; the kernel program and the daemon call it over
//! the same memory, so that a budget holds for both together.
//!
//! Longer than most files: the two budgets and the factor are one decision, and the tests that count what any second of random
//! traffic gets are nearly half of it.

use crate::wire::answer::ANSWER_LEN;
use crate::wire::nack::NACK_LEN;

/// Length of an IPv6 and a UDP header, bytes.
const HEADERS: u32 = 48;
/// Bytes of a NACK.
pub const NACK_BYTES: u32 = 64 + HEADERS;
/// Bytes of an ACK, a MISS or a THROTTLED.
pub const ANSWER_BYTES: u32 = 16 + HEADERS;
const _: () = assert!(NACK_BYTES as usize == NACK_LEN + HEADERS as usize);
const _: () = assert!(ANSWER_BYTES as usize == ANSWER_LEN + HEADERS as usize);
/// Bytes of a frame that one fragment carries at least: the smallest MTU of IPv6 is 1,280 (RFC 8200 section 5).
const FRAGMENT: u32 = 1_232;

/// Bytes of the packets that carry a frame of this length, of which `whole` bytes fit one packet. A longer one is counted with the
/// headers of as many fragments as there can be.
#[inline(always)]
pub const fn packet(length: u32, whole: u32) -> u32 {
    let fragments = if length > whole { (length + 8).div_ceil(FRAGMENT) } else { 0 };
    length + HEADERS + fragments * HEADERS
}

/// A budget of bytes per second as GCRA in bytes: the state is the time when all that has left is paid for.
///
/// A part of the budget may leave at once, the *burst*, and the rest of it is the rate, so that no second has more than the budget,
/// wherever it begins: the burst is half of a budget up to 256 KiB, 128 KiB of one up to 1 MiB, and an eighth of a larger one. What
/// takes more than the burst never leaves.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ByteBudget {
    /// Time of one byte, in 4096ths of a nanosecond; 0 = the budget is off.
    interval: u64,
    /// How far the state may run ahead of the clock: the time of the burst, nanoseconds.
    depth_ns: u64,
}

/// The time in which a budget is not exceeded: a 64th longer than a second, for packets that wait unequally long on their way.
const WINDOW_NS: u64 = 1_015_625_000;
/// Places of the interval behind the point.
const FRACTION: u32 = 12;
/// Burst of a medium budget, bytes.
const BURST: u64 = 128 << 10;

impl ByteBudget {
    /// The smallest budget, bytes per second.
    pub const LEAST: u64 = 1_024;
    /// The largest one.
    pub const MOST: u64 = 100_000_000_000;

    /// A budget of so many bytes per second, brought between [`ByteBudget::LEAST`] and [`ByteBudget::MOST`]; 0 is off.
    pub const fn new(per_second: u64) -> Self {
        if per_second == 0 {
            return Self { interval: 0, depth_ns: 0 };
        }
        let budget = if per_second < Self::LEAST { Self::LEAST } else { per_second };
        let budget = if budget > Self::MOST { Self::MOST } else { budget };
        let (half, eighth) = (budget / 2, budget / 8);
        let burst = if half < BURST { half } else { BURST };
        let burst = if burst < eighth { eighth } else { burst };
        let rate = budget - burst;
        let interval = (WINDOW_NS << FRACTION).div_ceil(rate);
        Self { interval, depth_ns: burst.saturating_mul(interval) >> FRACTION }
    }

    /// Its words in memory, in their order: each is changed by one store while programs run.
    pub const fn words(&self) -> [u64; 2] {
        [self.interval, self.depth_ns]
    }

    /// The budget of these words ([`ByteBudget::words`]).
    #[inline(always)]
    pub const fn from_words(words: [u64; 2]) -> Self {
        let [interval, depth_ns] = words;
        Self { interval, depth_ns }
    }

    /// True when there is no budget.
    #[inline(always)]
    pub const fn is_off(&self) -> bool {
        self.interval == 0
    }

    /// The same with half of the burst.
    #[inline(always)]
    #[must_use]
    pub const fn halved(&self) -> Self {
        Self { interval: self.interval, depth_ns: self.depth_ns / 2 }
    }

    /// The new state when so many bytes (below 2^21) leave at `now_ns`, `None` when they would be too many.
    #[inline(always)]
    pub const fn take(&self, state: u64, bytes: u32, now_ns: u64) -> Option<u64> {
        // Rounded up, so that many small packets do not come to more than the budget.
        let cost_ns = ((bytes as u64).wrapping_mul(self.interval) >> FRACTION) + 1;
        let from = if state > now_ns { state } else { now_ns };
        let paid = from.wrapping_add(cost_ns);
        if paid.wrapping_sub(now_ns) > self.depth_ns { None } else { Some(paid) }
    }

    /// What would be forgotten with `state`, to be compared. Below 2^61 for 70 years of the clock.
    #[inline(always)]
    pub const fn weight(state: u64) -> u64 {
        state & ((1 << 61) - 1)
    }
}

/// The budgets in bytes, as the settings hold them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ByteLimits {
    /// To one source address.
    pub source: ByteBudget,
    /// To all, multicast repairs included.
    pub total: ByteBudget,
    /// A source that has not shown that it hears us gets at most so many times the bytes of its NACK; 0: that is not asked.
    pub unproven_factor: u64,
}

impl ByteLimits {
    /// True when none of them is on.
    pub const fn is_off(&self) -> bool {
        self.source.is_off() && self.total.is_off() && self.unproven_factor == 0
    }
}

/// What would leave in answer to one NACK, bytes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Leaving {
    /// To its source.
    pub to_source: u32,
    /// By all interfaces, what goes to the source included.
    pub all: u32,
    /// What its source had for it before: the MISS of a frame that was recovered since. It is charged no second time.
    pub before: u32,
}

impl Leaving {
    /// One answer.
    pub const ANSWER: Self = Self { to_source: ANSWER_BYTES, all: ANSWER_BYTES, before: 0 };
}

/// Whether it may leave.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum Afforded {
    /// It may, and is charged.
    Yes = 0,
    /// More than a source gets that has not shown that it hears us. Nothing is charged.
    Unproven = 1,
    /// Over the budget of its source. Nothing is charged.
    OverSource = 2,
    /// Over the budget of all. The source may be charged.
    OverTotal = 3,
}

/// The three steps of [`afford`], for what would leave in answer to one NACK. The kernel program takes each in a function of its own,
/// for all three have no place on its stack.
pub trait Steps {
    /// As [`may_leave`].
    fn may_leave(&mut self) -> Afforded;
    /// Charges the budget of the source with what would go to it ([`super::table::take_strictly`]); false when it is used up.
    fn take_source(&mut self) -> bool;
    /// As [`take_total`].
    fn take_total(&mut self) -> bool;
}

/// Whether so much may leave; what may is charged. A budget is never exceeded: what cannot be charged does not leave.
#[inline(always)]
pub fn afford<S: Steps>(steps: &mut S) -> Afforded {
    match steps.may_leave() {
        Afforded::Yes => {}
        refused => return refused,
    }
    if !steps.take_source() {
        return Afforded::OverSource;
    }
    if steps.take_total() { Afforded::Yes } else { Afforded::OverTotal }
}

/// The state of the total, the budgets that it is judged by, and what is known of the source of one NACK.
pub trait Ledger {
    /// How often the state of the total is tried when others keep changing it.
    const ATTEMPTS: u32;
    /// [`ByteLimits::total`].
    fn total_budget(&self) -> ByteBudget;
    /// [`ByteLimits::unproven_factor`].
    fn unproven_factor(&self) -> u64;
    /// True when the source has shown that it hears us: it is a known listener, or on the allow list.
    fn is_proven(&mut self) -> bool;
    /// The state of the total.
    fn total(&self) -> u64;
    /// Replaces it if it is `old`; false when it is not.
    fn replace_total(&mut self, old: u64, new: u64) -> bool;
}

/// Whether so much may leave at `now_ns`, as far as the source need not be charged to tell. Charges nothing: a source is not to be
/// charged for what cannot leave.
///
/// A source that has not shown that it hears us has half of the total's burst: while strangers use up the total, proven sources
/// still find room, and go first.
#[inline(always)]
pub fn may_leave<L: Ledger>(ledger: &mut L, leaving: &Leaving, now_ns: u64) -> Afforded {
    let factor = ledger.unproven_factor();
    let most = factor.wrapping_mul(NACK_BYTES as u64);
    if factor != 0 && leaving.to_source as u64 + leaving.before as u64 > most && !ledger.is_proven() {
        return Afforded::Unproven;
    }
    if ledger.total_budget().is_off() || leaving.all == 0 {
        return Afforded::Yes;
    }
    let is_proven = ledger.is_proven();
    match next_total(ledger, ledger.total(), leaving.all, is_proven, now_ns) {
        Some(_) => Afforded::Yes,
        None => Afforded::OverTotal,
    }
}

/// Charges the total; false when it is used up, or others change it all the time.
#[inline(always)]
pub fn take_total<L: Ledger>(ledger: &mut L, bytes: u32, now_ns: u64) -> bool {
    if ledger.total_budget().is_off() || bytes == 0 {
        return true;
    }
    let is_proven = ledger.is_proven();
    let mut attempt = 0;
    while attempt < L::ATTEMPTS {
        let old = ledger.total();
        let Some(new) = next_total(ledger, old, bytes, is_proven, now_ns) else { return false };
        if ledger.replace_total(old, new) {
            return true;
        }
        attempt += 1;
    }
    false
}

/// The state of the total after `old`, when so much leaves.
#[inline(always)]
fn next_total<L: Ledger>(ledger: &L, old: u64, bytes: u32, is_proven: bool, now_ns: u64) -> Option<u64> {
    // Read where it is used: the kernel program has no room to keep it.
    let budget = ledger.total_budget();
    let budget = if is_proven { budget } else { budget.halved() };
    budget.take(old, bytes, now_ns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    const SECOND_NS: u64 = 1_000_000_000;
    const START: u64 = 5_000 * SECOND_NS;

    /// What leaves of a stream of packets, as (time, bytes).
    fn left(budget: &ByteBudget, packets: impl IntoIterator<Item = (u64, u32)>) -> Vec<(u64, u32)> {
        let mut state = 0;
        let taken = |(now_ns, bytes)| {
            let new = budget.take(state, bytes, now_ns)?;
            state = new;
            Some((now_ns, bytes))
        };
        packets.into_iter().filter_map(taken).collect()
    }

    /// The most bytes that any second has.
    fn most_in_a_second(packets: &[(u64, u32)]) -> u64 {
        let (mut first, mut sum, mut most) = (0, 0, 0);
        for (now_ns, bytes) in packets {
            sum += u64::from(*bytes);
            while packets[first].0 + SECOND_NS <= *now_ns {
                sum -= u64::from(packets[first].1);
                first += 1;
            }
            most = most.max(sum);
        }
        most
    }

    #[test]
    fn bytes_are_those_of_packets() {
        assert_eq!((NACK_BYTES, ANSWER_BYTES), (112, 64));
        assert_eq!(packet(392, 1_452), 440);
        assert_eq!(packet(1_452, 1_452), 1_500);
        // 1,453 bytes and the UDP header in two fragments of up to 1,448 bytes, each behind 48 bytes of headers.
        assert!(packet(1_453, 1_452) >= 1_453 + 8 + 2 * 48);
        // 65,000 bytes at the smallest MTU.
        assert!(packet(65_000, 1_232) >= 65_008 + 65_008_u32.div_ceil(1_232) * 48);
    }

    #[test]
    fn a_budget_is_used_well() {
        for (budget, share) in
            [(10_000_u64, 0.45), (200_000, 0.45), (1 << 20, 0.8), (10_000_000, 0.85), (1_250_000_000, 0.8)]
        {
            let bytes = u32::try_from((budget / 1_000).clamp(64, 1_500)).expect("small");
            let gap_ns = SECOND_NS * u64::from(bytes) / budget / 2;
            let packets = (0..).map(|number| (START + number * gap_ns, bytes));
            let all = left(&ByteBudget::new(budget), packets.take_while(|(now_ns, _)| *now_ns < START + 3 * SECOND_NS));
            let rest: u64 =
                all.iter().filter(|(at, _)| *at >= START + SECOND_NS).map(|(_, bytes)| u64::from(*bytes)).sum();
            #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
            let used = rest as f64 / (2 * budget) as f64;
            assert!(used >= share, "{budget}: {used}");
            assert!(most_in_a_second(&all) <= budget, "{budget}");
        }
    }

    #[test]
    fn half_of_a_small_budget_leaves_at_once() {
        let budget = ByteBudget::new(20_000);
        assert!(budget.take(0, 9_990, START).is_some());
        assert!(budget.take(0, 10_010, START).is_none());
        assert!(budget.halved().take(0, 4_990, START).is_some());
        assert!(budget.halved().take(0, 5_010, START).is_none());
    }

    #[test]
    fn words_tell_a_budget() {
        for budget in [0, 1, 20_000, u64::MAX] {
            let budget = ByteBudget::new(budget);
            assert_eq!(ByteBudget::from_words(budget.words()), budget);
        }
        assert!(ByteBudget::new(0).is_off() && !ByteBudget::new(1).is_off());
        // The longest repair by the most interfaces stays within 64 bits at the smallest budget.
        assert_eq!(ByteBudget::new(ByteBudget::LEAST).take(0, (1 << 21) - 1, START), None);
    }

    /// Plain numbers, and another CPU that changes the total before each of the first `races` charges.
    #[derive(Default)]
    struct Plain {
        limits: ByteLimits,
        is_proven: bool,
        source: u64,
        total: u64,
        races: u32,
        now_ns: u64,
    }

    impl Ledger for Plain {
        const ATTEMPTS: u32 = 4;

        fn total_budget(&self) -> ByteBudget {
            self.limits.total
        }
        fn unproven_factor(&self) -> u64 {
            self.limits.unproven_factor
        }
        fn is_proven(&mut self) -> bool {
            self.is_proven
        }
        fn total(&self) -> u64 {
            self.total
        }
        fn replace_total(&mut self, old: u64, new: u64) -> bool {
            if self.races > 0 {
                self.races -= 1;
                self.total += 1;
            }
            let is = self.total == old;
            if is {
                self.total = new;
            }
            is
        }
    }

    impl Steps for (&mut Plain, &Leaving) {
        fn may_leave(&mut self) -> Afforded {
            let now_ns = self.0.now_ns;
            may_leave(self.0, self.1, now_ns)
        }
        fn take_source(&mut self) -> bool {
            let (plain, leaving) = (&mut *self.0, self.1);
            if plain.limits.source.is_off() {
                return true;
            }
            let new = plain.limits.source.take(plain.source, leaving.to_source, plain.now_ns);
            plain.source = new.unwrap_or(plain.source);
            new.is_some()
        }
        fn take_total(&mut self) -> bool {
            let now_ns = self.0.now_ns;
            take_total(self.0, self.1.all, now_ns)
        }
    }

    fn afford(plain: &mut Plain, leaving: &Leaving) -> Afforded {
        super::afford(&mut (plain, leaving))
    }

    fn ledger(source: u64, total: u64, unproven_factor: u64) -> Plain {
        let limits = ByteLimits { source: ByteBudget::new(source), total: ByteBudget::new(total), unproven_factor };
        Plain { limits, now_ns: START, ..Plain::default() }
    }

    fn copy(bytes: u32) -> Leaving {
        Leaving { to_source: bytes, all: bytes, before: 0 }
    }

    #[test]
    fn an_unproven_source_gets_the_factor_and_no_more() {
        let mut plain = ledger(0, 0, 3);
        for (bytes, before, wanted) in [
            (336, 0, Afforded::Yes),
            (337, 0, Afforded::Unproven),
            (272, 64, Afforded::Yes),
            (273, 64, Afforded::Unproven),
            (64, 0, Afforded::Yes),
        ] {
            assert_eq!(afford(&mut plain, &Leaving { before, ..copy(bytes) }), wanted, "{bytes} after {before}");
        }
        // What goes to the group is not the source's.
        assert_eq!(afford(&mut plain, &Leaving { to_source: 64, all: 20_000, before: 0 }), Afforded::Yes);
        plain.is_proven = true;
        assert_eq!(afford(&mut plain, &copy(65_000)), Afforded::Yes);
    }

    #[test]
    fn what_cannot_leave_charges_no_source() {
        let mut plain = ledger(20_000, 2_000, 0);
        assert_eq!(afford(&mut plain, &copy(400)), Afforded::Yes);
        assert_eq!(afford(&mut plain, &copy(400)), Afforded::OverTotal);
        let charged = plain.source;
        assert_eq!(afford(&mut plain, &copy(400)), Afforded::OverTotal);
        assert_eq!(plain.source, charged);
    }

    #[test]
    fn proven_sources_find_room_that_strangers_leave() {
        let mut plain = ledger(0, 20_000, 0);
        while afford(&mut plain, &copy(500)) == Afforded::Yes {}
        plain.is_proven = true;
        let more = (0..).take_while(|_| afford(&mut plain, &copy(500)) == Afforded::Yes).count();
        assert_eq!(more, 10);
        // While they keep it filled, strangers get nothing.
        plain.is_proven = false;
        plain.now_ns += SECOND_NS / 10;
        assert_eq!(afford(&mut plain, &copy(64)), Afforded::OverTotal);
    }

    #[test]
    fn a_total_that_others_change_all_the_time_admits_nothing() {
        let mut plain = Plain { races: 3, ..ledger(0, 20_000, 0) };
        assert_eq!(afford(&mut plain, &copy(64)), Afforded::Yes);
        let mut plain = Plain { races: 4, ..ledger(0, 20_000, 0) };
        assert_eq!(afford(&mut plain, &copy(64)), Afforded::OverTotal);
    }

    proptest! {
        /// Wherever a second begins, and also with proven and unproven sources in turns.
        #[test]
        fn no_second_has_more_than_the_budget(
            budget in prop_oneof![1_024_u64..10_000, 10_000_u64..2_000_000, 2_000_000_u64..2_000_000_000],
            steps in prop::collection::vec((0_u64..80_000_000, 64_u32..70_000, any::<bool>()), 1..400),
        ) {
            let budget_of = ByteBudget::new(budget);
            let (mut state, mut now_ns, mut left) = (0, START, Vec::new());
            for (gap_ns, bytes, is_halved) in steps {
                now_ns += gap_ns;
                let of = if is_halved { budget_of.halved() } else { budget_of };
                if let Some(new) = of.take(state, bytes, now_ns) {
                    state = new;
                    left.push((now_ns, bytes));
                }
            }
            prop_assert!(most_in_a_second(&left) <= budget);
        }

        /// Bursts of small packets, whose rounding adds up.
        #[test]
        fn small_packets_do_not_add_up(budget in 1_024_u64..5_000_000_000, bytes in 64_u32..200) {
            let gap_ns = (SECOND_NS / 2_000).max(1);
            let packets = (0..4_000_u64).map(|number| (START + number / 2 * gap_ns, bytes));
            prop_assert!(most_in_a_second(&left(&ByteBudget::new(budget), packets)) <= budget);
        }
    }
}
