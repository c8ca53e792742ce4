//! What came back, as the counting program counts it.

use aya::Pod;

/// Counts by kind.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answers {
    /// ACKs.
    pub(crate) acks: u64,
    /// MISSes.
    pub(crate) misses: u64,
    /// THROTTLEDs.
    pub(crate) throttled: u64,
    /// Frames to us.
    pub(crate) unicast_frames: u64,
    /// Frames to a group.
    pub(crate) multicast_frames: u64,
    /// NACKs that came back as they left.
    pub(crate) reflected: u64,
    /// Anything else on the ports of the load.
    pub(crate) other: u64,
}
// SAFETY: words without padding.
unsafe impl Pod for Answers {}

impl Answers {
    /// Both together.
    pub(crate) const fn plus(&self, more: &Self) -> Self {
        Self {
            acks: self.acks + more.acks,
            misses: self.misses + more.misses,
            throttled: self.throttled + more.throttled,
            unicast_frames: self.unicast_frames + more.unicast_frames,
            multicast_frames: self.multicast_frames + more.multicast_frames,
            reflected: self.reflected + more.reflected,
            other: self.other + more.other,
        }
    }

    /// What came since `before`.
    pub(crate) const fn since(&self, before: &Self) -> Self {
        Self {
            acks: self.acks - before.acks,
            misses: self.misses - before.misses,
            throttled: self.throttled - before.throttled,
            unicast_frames: self.unicast_frames - before.unicast_frames,
            multicast_frames: self.multicast_frames - before.multicast_frames,
            reflected: self.reflected - before.reflected,
            other: self.other - before.other,
        }
    }

    /// Packets in all.
    pub(crate) const fn total(&self) -> u64 {
        self.acks
            + self.misses
            + self.throttled
            + self.unicast_frames
            + self.multicast_frames
            + self.reflected
            + self.other
    }
}
