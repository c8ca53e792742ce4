//! The three answers to a NACK (BRC-126): ACK, MISS, THROTTLED.

use crate::wire::{HEAD, MAGIC};

/// Length of an answer, bytes.
pub const ANSWER_LEN: usize = 16;

const MISS: u8 = 0x11;
const ACK: u8 = 0x12;
const THROTTLED: u8 = 0x13;

/// What an ACK says was sent.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct AckFlags(u8);

impl AckFlags {
    /// The frame left by multicast.
    pub const MULTICAST: Self = Self(0x01);
    /// The frame left by unicast.
    pub const UNICAST: Self = Self(0x02);

    /// The flags of these bits.
    #[inline(always)]
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// The bits.
    #[inline(always)]
    pub const fn bits(self) -> u8 {
        self.0
    }
}

/// An answer.
///
/// ```
/// use retry_common::wire::answer::Answer;
///
/// // "Ask again in 500 ms": 125 ms << 2.
/// let throttled = Answer::Throttled { bucket: 2, seq_num: 42 };
/// assert_eq!(Answer::parse(&throttled.to_bytes()), Ok(throttled));
///
/// // A MISS does not repeat the number that was asked for.
/// assert!(Answer::Miss.to_bytes().ends_with(&[0; 8]));
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answer {
    /// The frame was sent.
    Ack {
        /// How.
        flags: AckFlags,
        /// Of the frame.
        seq_num: u64,
    },
    /// The frame is not here.
    Miss,
    /// Ask again later.
    Throttled {
        /// Hold for 125 ms << bucket; four bits.
        bucket: u8,
        /// StartSeq of the NACK.
        seq_num: u64,
    },
}

/// Why bytes are no answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AnswerError {
    /// Not 16 bytes.
    #[error("an answer has 16 bytes")]
    Size,
    /// Another magic.
    #[error("the magic is not the fabric's")]
    Magic,
    /// None of the three types.
    #[error("the type is no answer's")]
    Type,
}

impl Answer {
    /// The answer of a datagram.
    #[rustfmt::skip]
    pub fn parse(datagram: &[u8]) -> Result<Self, AnswerError> {
        let [m0, m1, m2, m3, _, _, kind, flags, seq_num @ ..] =
            *<&[u8; ANSWER_LEN]>::try_from(datagram).map_err(|_| AnswerError::Size)?;
        if u32::from_be_bytes([m0, m1, m2, m3]) != MAGIC {
            return Err(AnswerError::Magic);
        }
        let seq_num = u64::from_be_bytes(seq_num);
        match kind {
            ACK => Ok(Self::Ack { flags: AckFlags(flags), seq_num }),
            MISS => Ok(Self::Miss),
            THROTTLED => Ok(Self::Throttled { bucket: flags & 0x0f, seq_num }),
            _ => Err(AnswerError::Type),
        }
    }

    /// The datagram of this answer.
    #[inline(always)]
    pub const fn to_bytes(&self) -> [u8; ANSWER_LEN] {
        let (kind, flags, seq_num) = match self {
            Self::Ack { flags, seq_num } => (ACK, flags.0, *seq_num),
            Self::Miss => (MISS, 0, 0),
            Self::Throttled { bucket, seq_num } => (THROTTLED, *bucket & 0x0f, *seq_num),
        };
        let [a, b, c, d, e, f] = HEAD;
        let [s0, s1, s2, s3, s4, s5, s6, s7] = seq_num.to_be_bytes();
        [a, b, c, d, e, f, kind, flags, s0, s1, s2, s3, s4, s5, s6, s7]
    }
}
