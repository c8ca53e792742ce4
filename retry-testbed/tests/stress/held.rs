//! Every frame that the log holds, read from its pins and compared byte for byte with what was published. Nothing of the
//! daemon's own counts is asked.

use std::mem::offset_of;
use std::path::Path;

use retry_common::abi::{RECORD_HEADER_LEN, RecordHeader, SLOT_LEN};
use retry_common::index;
use retry_common::key::FrameKey;
use retry_userspace::parts::datapath::pinned::{PinnedLog, Words as _};

use super::material::Material;

/// Reads every frame that an index entry leads to, and returns how many.
///
/// # Errors
/// The first frame that is none of `generations`.
pub(crate) fn compare(pins: &Path, material: &Material, generations: u8) -> Result<u64, String> {
    let log = PinnedLog::open(pins).map_err(|error| error.to_string())?;
    let (mut frames, mut bytes, mut room) = (0, Vec::new(), Vec::new());
    for at in (0..log.index.len()).step_by(8) {
        let entry = log.index.word(at);
        if entry == 0 {
            continue;
        }
        let start = index::slot(entry) as usize * SLOT_LEN;
        let version = log.ring.word(start);
        let mut head = [0; RECORD_HEADER_LEN];
        log.ring.copy(start, &mut head);
        let key_at = offset_of!(RecordHeader, key);
        let key = FrameKey::from_bytes(head[key_at..key_at + 16].try_into().expect("16 bytes"));
        let length_at = offset_of!(RecordHeader, length);
        let length = u32::from_ne_bytes(head[length_at..length_at + 4].try_into().expect("four bytes"));
        if length > 65_535 {
            return Err(format!("slot {}, key {key}: {length} bytes", index::slot(entry)));
        }
        bytes.resize(length as usize, 0);
        log.ring.copy(start + RECORD_HEADER_LEN, &mut bytes);
        let is_right = material.generation(key, generations, &bytes, &mut room).is_some();
        if log.index.word(at) != entry || log.ring.word(start) != version {
            // It went while it was read: its life was over.
            continue;
        }
        if !is_right {
            let head: String = bytes.iter().take(64).map(|byte| format!("{byte:02x}")).collect();
            return Err(format!(
                "slot {}, key {key}: {length} bytes that were never sent: {head}…",
                index::slot(entry)
            ));
        }
        frames += 1;
    }
    Ok(frames)
}
