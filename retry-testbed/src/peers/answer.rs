//! A NACK as a listener writes it, and the answers as a listener reads them: strictly, from the wire tables.

use std::time::Duration;

use retry_common::{key::FrameKey, wire::MAGIC};

const PROTO_VER: u16 = 0x02BF;

/// The 64 bytes of a NACK for one frame.
#[must_use]
pub fn nack(key: FrameKey) -> [u8; 64] {
    nack_with_flags(key, 0)
}

/// As [`nack`], with flags (bit 0: Proxied).
#[must_use]
pub fn nack_with_flags(key: FrameKey, flags: u8) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[..4].copy_from_slice(&MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&PROTO_VER.to_be_bytes());
    bytes[6] = 0x10;
    bytes[7] = flags;
    bytes[8..16].copy_from_slice(&key.hash_key().to_be_bytes());
    bytes[16..24].copy_from_slice(&key.seq_num().to_be_bytes());
    bytes[24..32].copy_from_slice(&key.seq_num().to_be_bytes());
    bytes
}

/// A valid answer to a NACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The frame was sent.
    Ack {
        /// By multicast.
        multicast: bool,
        /// To the asker.
        unicast: bool,
    },
    /// The endpoint does not have the frame.
    Miss,
    /// Ask again later.
    Throttled {
        /// How much later: 125 ms times two to the bucket.
        hold: Duration,
    },
}

impl Answer {
    /// Reads an answer to a NACK for `seq_num`.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(bytes: &[u8], seq_num: u64) -> Result<Self, String> {
        let Ok(bytes) = <[u8; 16]>::try_from(bytes) else {
            return Err(format!("{} bytes and not 16", bytes.len()));
        };
        let [a, b, c, d, e, f, kind, flags, rest @ ..] = bytes;
        if u32::from_be_bytes([a, b, c, d]) != MAGIC || u16::from_be_bytes([e, f]) != PROTO_VER {
            return Err(format!("not of this protocol: {bytes:02x?}"));
        }
        let echoed = u64::from_be_bytes(rest);
        match (kind, flags, echoed) {
            (0x12, 1..=3, echoed) if echoed == seq_num => {
                Ok(Self::Ack { multicast: flags & 1 != 0, unicast: flags & 2 != 0 })
            }
            (0x11, 0, 0) => Ok(Self::Miss),
            (0x13, 2..=4, echoed) if echoed == seq_num => {
                Ok(Self::Throttled { hold: Duration::from_millis(125 << flags) })
            }
            _ => Err(format!("type {kind:#04x}, flags {flags:#04x}, SeqNum {echoed}, asked for {seq_num}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf, time::Duration};

    use retry_common::key::FrameKey;

    use super::{Answer, nack};

    fn golden(name: &str) -> Vec<u8> {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../retry-common/tests/golden").join(name);
        let text: String = fs::read_to_string(path).expect("a golden file").split_whitespace().collect();
        (0..text.len() / 2).map(|at| u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).expect("hex")).collect()
    }

    #[test]
    fn a_nack_is_the_fields_but_for_the_informational_bytes() {
        let theirs = golden("nack-1.hex");
        let key = FrameKey::new(0x094a_3723_7fc0_78ba, 3);
        assert_eq!(nack(key)[..32], theirs[..32]);
    }

    #[test]
    fn the_fields_answers_parse() {
        let ack = Answer::Ack { multicast: true, unicast: false };
        assert_eq!(Answer::parse(&golden("ack-1.hex"), 3), Ok(ack));
        assert_eq!(Answer::parse(&golden("miss-1.hex"), 3), Ok(Answer::Miss));
    }

    #[test]
    fn what_no_endpoint_may_say_is_refused() {
        let ack = golden("ack-1.hex");
        assert!(Answer::parse(&ack, 4).is_err(), "another SeqNum");
        assert!(Answer::parse(&ack[..15], 3).is_err());
        let mut empty = ack.clone();
        empty[7] = 0;
        assert!(Answer::parse(&empty, 3).is_err(), "an ACK of nothing");
        let mut throttled = ack;
        throttled[6] = 0x13;
        throttled[7] = 4;
        let hold = Duration::from_secs(2);
        assert_eq!(Answer::parse(&throttled, 3), Ok(Answer::Throttled { hold }));
        throttled[7] = 9;
        assert!(Answer::parse(&throttled, 3).is_err());
    }
}
