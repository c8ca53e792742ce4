//! CRC32c (Castagnoli, RFC 3720 appendix B.4): instance ids (BRC-126) and manifests (BRC-139). For the daemon only.

use crc::{CRC_32_ISCSI, Crc, Table};

/// One table of 1 KiB: what is summed here is short and rare.
static CRC: Crc<u32, Table<1>> = Crc::<u32, Table<1>>::new(&CRC_32_ISCSI);

/// The CRC of these parts, one behind the other.
pub fn of(parts: &[&[u8]]) -> u32 {
    let mut digest = CRC.digest();
    for part in parts {
        digest.update(part);
    }
    digest.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 3720 appendix B.4.
    #[test]
    fn the_rfcs_examples() {
        let rising: [u8; 32] = core::array::from_fn(|i| u8::try_from(i).unwrap());
        assert_eq!(of(&[&[0; 32]]), 0x8a91_36aa);
        assert_eq!(of(&[&[0xff; 32]]), 0x62a8_ab43);
        assert_eq!(of(&[&rising]), 0x46dd_794e);
        assert_eq!(of(&[b"123456789"]), 0xe306_9283);
        assert_eq!(of(&[]), 0);
    }

    proptest! {
        #[test]
        fn parts_are_summed_as_one(bytes in prop::collection::vec(any::<u8>(), 0..200), cut: prop::sample::Index) {
            let (head, rest) = bytes.split_at(cut.index(bytes.len() + 1));
            prop_assert_eq!(of(&[head, rest]), of(&[&bytes]));
        }
    }
}
