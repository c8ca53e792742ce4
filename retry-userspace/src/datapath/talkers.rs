//! The NACKs that the kernel program has drawn for the top talkers.

use aya::maps::{MapData, RingBuf};
use retry_common::talkers::Drawn;

/// NACKs that were drawn.
pub struct DrawnNacks(pub(super) RingBuf<MapData>);

impl DrawnNacks {
    /// The next one, if there is one.
    pub fn take(&mut self) -> Option<Drawn> {
        let item = self.0.next()?;
        let bytes: &[u8] = &item;
        if bytes.len() < size_of::<Drawn>() {
            return None;
        }
        // SAFETY: long enough, as just checked, and made of integers.
        Some(unsafe { bytes.as_ptr().cast::<Drawn>().read_unaligned() })
    }
}
