//! Whether interfaces take what the kernel program redirects to them, by the counts of what they took.
//!
//! A packet is lost in one of two ways. The driver does not take it: the kernel tells, and the kernel program counts. Or
//! it is not even queued for the driver: since Linux 6.3 an interface says whether it takes redirected packets at all
//! (`NETDEV_XDP_ACT_NDO_XMIT`), and what is redirected to one that does not is dropped without a word, for a broadcast at
//! least. Then less comes to the driver than was counted as redirected; [`Ledger`] sees that.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use retry_common::abi::Sent;
use retry_common::counter::{Counter, Counters};

/// Counts are judged over this long.
const WINDOW: Duration = Duration::from_secs(10);
/// So many lost packets in the window, and none taken, are no chance.
const DEAD: u64 = 4;
/// So many lost packets in the window are worth a word, where they are a tenth of all.
const LOSING: u64 = 8;

/// What was redirected is held against what came to the driver this much later: by then it was queued or is lost.
const FLIGHT: Duration = Duration::from_millis(200);

/// What an interface is to the kernel program.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Part {
    /// Answers and unicast repairs leave by it.
    pub answers: bool,
    /// Multicast repairs leave by it.
    pub repairs: bool,
}

/// Packets that were redirected, and never came to a driver; by interface.
#[derive(Debug, Default)]
pub(crate) struct Ledger(BTreeMap<String, Row>);

#[derive(Debug, Default)]
struct Row {
    /// What was redirected, and when that was read.
    asked: Option<(Instant, i64)>,
    /// What is no loss in the difference of the two sums.
    base: i64,
    lost: u64,
    part: Part,
    /// Packets of ours beside those that were counted as redirected: probes.
    probes: u64,
}

impl Ledger {
    /// Takes the kernel program's counters, and what came to the driver of an interface, as they are `now`: the counters
    /// were read first.
    pub(crate) fn enter(&mut self, interface: &str, part: Part, now: Instant, counters: &Counters, sent: Sent) {
        let row = self.0.entry(interface.to_owned()).or_default();
        let asked = signed(asked(part, counters));
        // What the role program could not make is counted among these, and comes to no driver.
        let told = signed((sent.packets + sent.drops).saturating_sub(row.probes) + failed(counters));
        match row.asked {
            Some((when, before)) if row.part == part => {
                if now.duration_since(when) >= FLIGHT {
                    row.lost = row.lost.max(u64::try_from(before - told - row.base).unwrap_or(0));
                    row.asked = Some((now, asked));
                }
            }
            _ => {
                row.base = asked - told - signed(row.lost);
                row.asked = Some((now, asked));
                row.part = part;
            }
        }
    }

    /// Goes on from what was lost before this daemon.
    pub(crate) fn begin(&mut self, interface: &str, lost: u64) {
        self.0.entry(interface.to_owned()).or_default().lost = lost;
    }

    /// A probe came to the driver of an interface.
    pub(crate) fn probed(&mut self, interface: &str) {
        self.0.entry(interface.to_owned()).or_default().probes += 1;
    }

    /// What was lost before the driver of an interface.
    #[must_use]
    pub(crate) fn lost(&self, interface: &str) -> u64 {
        self.0.get(interface).map_or(0, |row| row.lost)
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Packets that the kernel program redirected to an interface, by what it counted as sent.
fn asked(part: Part, counters: &Counters) -> u64 {
    const ANSWERS: [Counter; 4] =
        [Counter::AcksSent, Counter::MissesSent, Counter::ThrottledSent, Counter::UnicastRetransmits];
    let answers = ANSWERS.iter().filter(|_| part.answers).map(|counter| counters.get(*counter)).sum::<u64>();
    answers + if part.repairs { counters.get(Counter::Retransmits) } else { 0 }
}

/// Packets that the role program may have dropped.
fn failed(counters: &Counters) -> u64 {
    [Counter::RepairTorn, Counter::RetransmitErrors, Counter::AckErrors]
        .map(|counter| counters.get(counter))
        .iter()
        .sum()
}

/// What the counts of an interface say.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Judgement {
    /// Nothing is wrong, or too little is known.
    Takes,
    /// It loses a tenth or more.
    Loses,
    /// It takes nothing.
    Refuses,
}

/// The counts of the last ten seconds, by interface.
#[derive(Debug, Default)]
pub(crate) struct Delivery(BTreeMap<String, VecDeque<(Instant, Sent)>>);

impl Delivery {
    /// Takes the counts of `interface` as they are `now`, and judges.
    pub(crate) fn judge(&mut self, interface: &str, now: Instant, count: Sent) -> Judgement {
        let seen = self.0.entry(interface.to_owned()).or_default();
        seen.push_back((now, count));
        // The last one before the window stays: it is what is counted from.
        while seen.get(1).is_some_and(|(when, _)| now.duration_since(*when) >= WINDOW) {
            seen.pop_front();
        }
        let from = seen.front().map_or(count, |(_, from)| *from);
        let (packets, drops) = (count.packets.saturating_sub(from.packets), count.drops.saturating_sub(from.drops));
        if packets == 0 && drops >= DEAD {
            Judgement::Refuses
        } else if drops >= LOSING && drops * 10 >= packets + drops {
            Judgement::Loses
        } else {
            Judgement::Takes
        }
    }

    /// Forgets what was: something has changed.
    pub(crate) fn forget(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(steps: &[(u64, u64, u64)]) -> Judgement {
        let (mut delivery, start) = (Delivery::default(), Instant::now());
        let mut last = Judgement::Takes;
        for (seconds, packets, drops) in steps {
            let count = Sent { packets: *packets, drops: *drops };
            last = delivery.judge("eth0", start + Duration::from_secs(*seconds), count);
        }
        last
    }

    #[test]
    fn an_interface_that_takes_nothing_refuses() {
        assert_eq!(judged(&[(0, 0, 0), (1, 0, 3)]), Judgement::Takes);
        assert_eq!(judged(&[(0, 0, 0), (1, 0, 4)]), Judgement::Refuses);
        assert_eq!(judged(&[(0, 900, 0), (1, 900, 2), (2, 900, 4)]), Judgement::Refuses);
        assert_eq!(judged(&[(0, 900, 0), (1, 901, 4)]), Judgement::Takes);
        // What it lost before the first look is not known to be recent.
        assert_eq!(judged(&[(0, 0, 99)]), Judgement::Takes);
    }

    #[test]
    fn a_tenth_is_worth_a_word_and_less_is_not() {
        assert_eq!(judged(&[(0, 0, 0), (1, 50, 7)]), Judgement::Takes);
        assert_eq!(judged(&[(0, 0, 0), (1, 72, 8)]), Judgement::Loses);
        assert_eq!(judged(&[(0, 0, 0), (1, 73, 8)]), Judgement::Takes);
    }

    #[test]
    fn what_is_long_past_does_not_count() {
        assert_eq!(judged(&[(0, 0, 0), (1, 8, 8), (9, 8, 8)]), Judgement::Loses);
        assert_eq!(judged(&[(0, 0, 0), (1, 8, 8), (10, 8, 8), (11, 8, 8)]), Judgement::Takes);
        assert_eq!(judged(&[(0, 0, 0), (1, 0, 4), (12, 0, 4)]), Judgement::Takes);
    }

    /// Counters with these numbers of ACKs and of multicast repairs.
    fn counted(acks: u64, repairs: u64) -> Counters {
        let mut counters = Counters::default();
        *counters.get_mut(Counter::AcksSent) = acks;
        *counters.get_mut(Counter::Retransmits) = repairs;
        counters
    }

    const BOTH: Part = Part { answers: true, repairs: true };

    #[test]
    fn what_never_came_to_the_driver_is_lost() {
        let (mut ledger, start) = (Ledger::default(), Instant::now());
        let mut enter = |ms, acks, repairs, packets| {
            let sent = Sent { packets, drops: 0 };
            ledger.enter("eth0", BOTH, start + Duration::from_millis(ms), &counted(acks, repairs), sent);
            ledger.lost("eth0")
        };
        // What stood before the first look is not known to be lost.
        assert_eq!(enter(0, 9, 0, 0), 0);
        assert_eq!(enter(1_000, 10, 1, 2), 0);
        // On its way when the counters were read.
        assert_eq!(enter(2_000, 20, 1, 2), 0);
        assert_eq!(enter(3_000, 20, 1, 12), 0);
        // Not on its way a second later.
        assert_eq!(enter(4_000, 25, 1, 12), 0);
        assert_eq!(enter(4_001, 25, 1, 12), 0);
        assert_eq!(enter(5_000, 25, 1, 12), 5);
        assert_eq!(enter(6_000, 25, 3, 14), 5);
        assert_eq!(enter(7_000, 25, 3, 14), 5);
    }

    #[test]
    fn what_is_no_loss_is_not_counted() {
        let (mut ledger, start) = (Ledger::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        ledger.enter("eth0", BOTH, at(0), &Counters::default(), Sent::default());
        // Four ACKs: one failed in the role program, one was not taken, two were; and a probe.
        let mut counters = counted(4, 0);
        *counters.get_mut(Counter::AckErrors) = 1;
        ledger.probed("eth0");
        for ms in [1_000, 2_000, 3_000] {
            ledger.enter("eth0", BOTH, at(ms), &counters, Sent { packets: 3, drops: 1 });
            assert_eq!(ledger.lost("eth0"), 0);
        }
        // Interfaces that only repairs leave by are not asked for ACKs, and a new part begins anew.
        let repairs = Part { answers: false, repairs: true };
        for ms in [4_000, 5_000, 6_000] {
            ledger.enter("eth0", repairs, at(ms), &counters, Sent { packets: 3, drops: 1 });
            ledger.enter("eth1", repairs, at(ms), &counted(8, 0), Sent::default());
        }
        assert_eq!((ledger.lost("eth0"), ledger.lost("eth1"), ledger.lost("eth2")), (0, 0, 0));
    }

    #[test]
    fn interfaces_are_judged_each_by_itself() {
        let (mut delivery, now) = (Delivery::default(), Instant::now());
        let dead = Sent { packets: 0, drops: 9 };
        for name in ["eth0", "eth1"] {
            assert_eq!(delivery.judge(name, now, Sent::default()), Judgement::Takes);
        }
        assert_eq!(delivery.judge("eth0", now, dead), Judgement::Refuses);
        assert_eq!(delivery.judge("eth1", now, Sent::default()), Judgement::Takes);
        delivery.forget();
        assert_eq!(delivery.judge("eth0", now, dead), Judgement::Takes);
    }
}
