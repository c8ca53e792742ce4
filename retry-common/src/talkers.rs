//! Which NACKs are counted for the top talkers: the sources and flows that ask most.
//!
//! Both paths draw by the same rule ([`draw`]), so that the work per NACK has a bound: of each interval of [`INTERVAL_NS`] the
//! first [`WHOLE`] NACKs on a CPU are all told of, of later ones one in [`ONE_IN`], which counts that often. Whether a NACK is
//! drawn is known before anything is known of it but its time, so sums are right on average for each source and each flow. The
//! hash is a thorough one: of a single multiplication the times of a busy loop, nearly equal steps apart, make 15 % too many.

use crate::limits::table::join;

/// An interval of [`draw`], nanoseconds: 17 ms.
pub const INTERVAL_NS: u64 = 1 << INTERVAL_SHIFT;
const INTERVAL_SHIFT: u32 = 24;
/// So many NACKs of an interval are all told of.
pub const WHOLE: u64 = 32;
/// Of further ones one in so many.
pub const ONE_IN: u32 = 128;
/// Bits of the state that count NACKs.
const COUNT_BITS: u32 = 8;

const _: () = assert!(WHOLE < 1 << COUNT_BITS && ONE_IN.is_power_of_two());

/// Whether a NACK of this time is told of: the state from here on, and how many NACKs it stands for; 0: it is not told of.
///
/// The state, which is 0 at first, is the number of the interval beside the number of NACKs told of in it. It is to be kept
/// only where it differs.
#[inline(always)]
pub const fn draw(state: u64, now_ns: u64) -> (u64, u32) {
    let interval = now_ns >> INTERVAL_SHIFT;
    let seen = if state >> COUNT_BITS == interval { state & ((1 << COUNT_BITS) - 1) } else { 0 };
    if seen < WHOLE {
        (interval << COUNT_BITS | (seen + 1), 1)
    } else if join(now_ns, 0) & (ONE_IN as u64 - 1) == 0 {
        (state, ONE_IN)
    } else {
        (state, 0)
    }
}

/// What is told of a NACK that was drawn, by the kernel program over a BPF ring buffer.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Drawn {
    /// The address that it came from.
    pub source: [u8; 16],
    /// HashKey of the flow that it asks for; 0: none, or not known.
    pub flow: u64,
    /// How many NACKs it stands for.
    pub weight: u32,
    /// Number of the [`crate::counter::Counter`] that says why it got what it got, plus one; 0: none.
    pub reason: u16,
    /// Bytes of the frame that left; 0: none did.
    pub length: u16,
    /// [`crate::latency::Measured`].
    pub verdict: u8,
    /// What left as clones, as [`crate::abi::ticket_role`] bits.
    pub sent: u8,
    /// Zero.
    pub reserved: [u8; 6],
}

impl Drawn {
    /// In the place of a verdict: the packet was no NACK.
    pub const REFUSED: u8 = u8::MAX;
}

const _: () = assert!(size_of::<Drawn>() == 40 && core::mem::offset_of!(Drawn, weight) == 24);

#[cfg(test)]
mod tests {
    use super::*;

    /// Times of NACKs that come so many nanoseconds apart, with some unrest.
    fn times(gap: u64, number: u64) -> impl Iterator<Item = u64> {
        (0..number).scan(1_000_000_007, move |now, i| {
            *now += gap + i * 7919 % 101;
            Some(*now)
        })
    }

    #[test]
    fn few_are_all_told_of() {
        let mut state = 0;
        for now_ns in times(INTERVAL_NS / WHOLE, 10_000) {
            let (next, weight) = draw(state, now_ns);
            assert_eq!(weight, 1, "at {now_ns}");
            state = next;
        }
    }

    /// Those of one source among many, each with its own rate: within four standard deviations of what came.
    #[test]
    fn what_is_left_out_is_counted_for() {
        for gap in [200u64, 777, 5_000] {
            let (mut state, mut told) = (0, [0u64; 4]);
            let (mut sum, mut came) = ([0u64; 4], [0u64; 4]);
            for (i, now_ns) in times(gap, 2_000_000).enumerate() {
                let source = [0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3][i * 5 % 12];
                let (next, weight) = draw(state, now_ns);
                state = next;
                came[source] += 1;
                sum[source] += u64::from(weight);
                told[source] += u64::from(weight != 0);
            }
            for source in 0..4 {
                let bound = 4.0 * (f64::from(ONE_IN) * came[source] as f64).sqrt();
                let off = sum[source].abs_diff(came[source]) as f64;
                assert!(off < bound, "{} for {}, {gap} ns apart", sum[source], came[source]);
            }
            let all: u64 = told.iter().sum();
            let intervals = 2_000_000 * (gap + 50) / INTERVAL_NS + 2;
            assert!(all < intervals * WHOLE + 2_000_000 / u64::from(ONE_IN) * 2, "{all} were told of, {gap} ns apart");
        }
    }
}
