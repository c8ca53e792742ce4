//! Repair suppression: one table of words, each the last multicast of a frame.
//!
//! A word packs a tag of the frame's hash (24 bits), who sent (1 bit) and when (39 bits of 65,536 ns: 417 days). The
//! table is direct-mapped: another frame in the same place takes it over, which costs at most one repair too many.

const TIME_SHIFT: u32 = 16;
const TIME_BITS: u32 = 39;
const TIME_MASK: u64 = (1 << TIME_BITS) - 1;
const OTHER: u64 = 1 << TIME_BITS;
const TAG_SHIFT: u32 = TIME_BITS + 1;

/// Who multicast the frame last.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Claim {
    /// No instance lately: send. The word is what the table holds from now on.
    Free(u64),
    /// We did, less than the hold-down ago.
    Ours,
    /// Another instance did, and its claim is still young.
    Others,
}

/// How long a multicast of a frame silences the next one, in nanoseconds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct HoldDown {
    /// After one of ours; 0 = never.
    pub ours_ns: u64,
    /// After one of another instance; 0 = never.
    pub others_ns: u64,
}

impl HoldDown {
    /// The longest hold-down that a word tells from one that began ahead of the clock, in nanoseconds: 208 days. No frame lives
    /// that long.
    pub const LONGEST_NS: u64 = (TIME_MASK / 2) << TIME_SHIFT;

    /// True when nothing is ever held down, so that the table need not be looked at.
    #[inline(always)]
    pub const fn is_off(&self) -> bool {
        self.ours_ns == 0 && self.others_ns == 0
    }

    /// What the table's `word` says of the frame with this `hash` at `now_ns`.
    #[inline(always)]
    pub const fn claim(&self, word: u64, hash: u64, now_ns: u64) -> Claim {
        let now = (now_ns >> TIME_SHIFT) & TIME_MASK;
        let age = now.wrapping_sub(word) & TIME_MASK;
        // Another CPU may have looked at the clock a moment after we did and have written first: that is now, not long ago.
        let age_ns = if age > TIME_MASK / 2 { 0 } else { age << TIME_SHIFT };
        let tag = hash >> TAG_SHIFT;
        if word != 0 && word >> TAG_SHIFT == tag {
            if word & OTHER != 0 {
                if age_ns < self.others_ns {
                    return Claim::Others;
                }
            } else if age_ns < self.ours_ns {
                return Claim::Ours;
            }
        }
        Claim::Free((tag << TAG_SHIFT) | now)
    }

    /// The word that marks the frame as multicast by another instance at `at_ns`.
    pub const fn others_word(hash: u64, at_ns: u64) -> u64 {
        ((hash >> TAG_SHIFT) << TAG_SHIFT) | OTHER | ((at_ns >> TIME_SHIFT) & TIME_MASK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const HOLD: HoldDown = HoldDown { ours_ns: 10 * MS, others_ns: 1_000 * MS };
    const HASH: u64 = 0xabcd_ef01_2345_6789;

    #[test]
    fn held_for_its_time_and_no_longer() {
        let now = 77_777 * MS;
        let Claim::Free(word) = HOLD.claim(0, HASH, now) else { panic!("an empty word is free") };
        assert_eq!(HOLD.claim(word, HASH, now), Claim::Ours);
        assert_eq!(HOLD.claim(word, HASH, now + 9 * MS), Claim::Ours);
        assert!(matches!(HOLD.claim(word, HASH, now + 11 * MS), Claim::Free(_)));
        assert!(matches!(HOLD.claim(word, !HASH, now), Claim::Free(_)));
    }

    /// Two CPUs that ask at once look at the clock one after the other, and write in either order.
    #[test]
    fn a_claim_from_a_moment_ahead_holds() {
        let now = 77_777 * MS;
        let Claim::Free(word) = HOLD.claim(0, HASH, now) else { panic!("an empty word is free") };
        for behind in [1, 65_536, 65_537, MS, 1_000 * MS] {
            assert_eq!(HOLD.claim(word, HASH, now - behind), Claim::Ours, "{behind} ns");
        }
    }

    #[test]
    fn anothers_claim_has_its_own_length() {
        let now = 77_777 * MS;
        let word = HoldDown::others_word(HASH, now);
        assert_eq!(HOLD.claim(word, HASH, now + 900 * MS), Claim::Others);
        assert!(matches!(HOLD.claim(word, HASH, now + 1_001 * MS), Claim::Free(_)));
    }

    #[test]
    fn the_longest_is_held_to_its_end() {
        let hold = HoldDown { ours_ns: HoldDown::LONGEST_NS, others_ns: HoldDown::LONGEST_NS };
        let now = 77_777 * MS;
        let word = HoldDown::others_word(HASH, now);
        assert_eq!(hold.claim(word, HASH, now + HoldDown::LONGEST_NS - MS), Claim::Others);
        assert!(matches!(hold.claim(word, HASH, now + HoldDown::LONGEST_NS), Claim::Free(_)));
    }

    #[test]
    fn off_holds_nothing() {
        let off = HoldDown::default();
        assert!(off.is_off());
        let Claim::Free(word) = off.claim(0, HASH, MS) else { panic!("free") };
        assert!(matches!(off.claim(word, HASH, MS), Claim::Free(_)));
    }
}
