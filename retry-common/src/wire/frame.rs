//! Frames, versions 1 to 9 (BRC-12, 124, 128, 130, 131, 132, 134, 142, 149).
//!
//! All cached frames share the offsets 0 to 56, so the key is found without a branch. Everything but a bundle's members
//! can be judged from the first [`HEAD_LEN`] bytes and the length, so that a reader with a copied head can do it too.
//!
//! Longer than most files: the versions share one header, and its reader and its writer are checked side by side.

use crate::group::{BLOCK, SUBTREE_DATA, Sharding};
use crate::key::FrameKey;
use crate::wire::{MAGIC, chunk, put};

/// Bytes that [`Head::parse`] needs to see of a longer frame.
pub const HEAD_LEN: usize = 104;

const LEGACY_HEADER: usize = 44;
const HEADER: usize = 92;
const FRAGMENT_HEADER: usize = 104;
const BUNDLE_HEADER: usize = 66;
/// Byte 7 of a bundle: each member carries its TxID.
const BUNDLE_HAS_TX_IDS: u8 = 0x01;

/// FrameVer.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum Version {
    /// BRC-12: no sequence number, received and never cached.
    Legacy = 1,
    /// BRC-124, 128: a transaction.
    Transaction = 2,
    /// BRC-130: a fragment of a longer frame.
    Fragment = 3,
    /// BRC-131: a block announcement (MsgType 1) or coinbase (2).
    Block = 4,
    /// BRC-132: subtree data.
    SubtreeData = 5,
    /// BRC-134: an anchor.
    Anchor = 6,
    /// BRC-142: a bundle of transactions.
    Bundle = 8,
    /// BRC-149: a BEEF object.
    Beef = 9,
}

impl Version {
    /// Bytes of its header.
    pub const fn header_len(self) -> usize {
        match self {
            Self::Legacy => LEGACY_HEADER,
            Self::Fragment => FRAGMENT_HEADER,
            Self::Bundle => BUNDLE_HEADER,
            Self::Transaction | Self::Block | Self::SubtreeData | Self::Anchor | Self::Beef => HEADER,
        }
    }

    /// Where the payload length stands.
    const fn length_at(self) -> usize {
        match self {
            Self::Legacy => 40,
            Self::Bundle => 62,
            Self::Transaction | Self::Fragment | Self::Block | Self::SubtreeData | Self::Anchor | Self::Beef => 88,
        }
    }
}

/// What decides how long a frame is kept.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum Class {
    /// Transactions and bundles.
    Tx = 0,
    /// Blocks and coinbases.
    Block = 1,
    /// Subtree data.
    Subtree = 2,
    /// Anchors.
    Anchor = 3,
    /// BEEF objects.
    Beef = 4,
}

impl Class {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Tx, Self::Block, Self::Subtree, Self::Anchor, Self::Beef];

    /// Its name in settings and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tx => "tx",
            Self::Block => "block",
            Self::Subtree => "subtree",
            Self::Anchor => "anchor",
            Self::Beef => "beef",
        }
    }

    /// The lane of the frame log that its frames go to: 0 for classes that live short, 1 for those that live long, so that
    /// a burst of transactions cannot push blocks out.
    #[inline(always)]
    pub const fn lane(self) -> usize {
        match self {
            Self::Tx | Self::Beef => 0,
            Self::Block | Self::Subtree | Self::Anchor => 1,
        }
    }

    /// The value of this class among one per class, in the order of [`Class::ALL`].
    #[inline(always)]
    pub const fn of<T: Copy>(self, each: &[T; 5]) -> T {
        // Not an index: the kernel program must not contain a panic.
        match self {
            Self::Tx => each[0],
            Self::Block => each[1],
            Self::Subtree => each[2],
            Self::Anchor => each[3],
            Self::Beef => each[4],
        }
    }

    /// The class of a stored number.
    pub const fn from_u8(class: u8) -> Option<Self> {
        match class {
            0 => Some(Self::Tx),
            1 => Some(Self::Block),
            2 => Some(Self::Subtree),
            3 => Some(Self::Anchor),
            4 => Some(Self::Beef),
            _ => None,
        }
    }
}

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum FrameError {
    /// Shorter than the header of its version.
    #[error("shorter than its header")]
    Short,
    /// Another magic.
    #[error("the magic is not the fabric's")]
    Magic,
    /// A version that this fabric does not carry.
    #[error("unknown frame version")]
    Version,
    /// MsgType other than 1 or 2 in a block or subtree data frame.
    #[error("unknown message type")]
    MsgType,
    /// The declared payload is longer than the datagram.
    #[error("the payload is longer than the datagram")]
    Length,
    /// FragTotal is 0, or FragIndex is not below it.
    #[error("the fragment's number is not below the number of fragments")]
    Fragment,
    /// OrigFrameVer names no version that comes in fragments: neither 0, 2, 4, 5, 6 nor 9. Without one, a fragment
    /// has neither a life nor a group.
    #[error("a fragment of a version that is not fragmented")]
    OriginalVersion,
    /// The members of a bundle do not fill their section exactly as told.
    #[error("the bundle's members do not fit their section")]
    Bundle,
}

/// What a fragment says of its place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fragment {
    /// Length of the whole, bytes.
    pub original_len: u32,
    /// Its number, from 0.
    pub index: u16,
    /// How many there are.
    pub total: u16,
    /// FrameVer of the whole; 0 and 2 are transactions.
    pub original_version: u8,
}

/// What a bundle says of itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Bundle {
    /// Its group.
    pub group_index: u16,
    /// Shard bits of its sender.
    pub shard_bits: u8,
    /// Number of members.
    pub tx_count: u16,
    /// True when each member carries its TxID.
    pub has_tx_ids: bool,
}

/// The header of a frame, judged: all rules but those of a bundle's members.
///
/// ```
/// use retry_common::key::FrameKey;
/// use retry_common::wire::PROTO_VER;
/// use retry_common::wire::frame::{Class, Head, Version};
///
/// let key = FrameKey::new(0xfeed, 42);
/// let head = Head {
///     proto: PROTO_VER,
///     version: Version::Transaction,
///     byte7: 0,
///     ident: [0xab; 32],
///     key,
///     scope: [0; 32],
///     header_len: Version::Transaction.header_len(),
///     payload_len: 300,
///     fragment: None,
///     bundle: None,
/// };
/// let mut datagram = [0; 392];
/// head.write(&mut datagram).ok_or("too long")?;
///
/// let read = Head::parse(&datagram, datagram.len())?;
/// assert_eq!(read.cache_key(), Some(key));
/// assert_eq!(read.class(), Some(Class::Tx));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Head {
    /// Protocol version: [`PROTO_VER`](crate::wire::PROTO_VER) in what we write, not judged in what we read.
    pub proto: u16,
    /// Its version.
    pub version: Version,
    /// Reserved, MsgType or flags, by version.
    pub byte7: u8,
    /// TxID, ContentID or SubtreeID, by version.
    pub ident: [u8; 32],
    /// Its flow and number; meaningless in a legacy frame.
    pub key: FrameKey,
    /// SubtreeID or TopicID, by version; zero where the header has none.
    pub scope: [u8; 32],
    /// Bytes of the header.
    pub header_len: usize,
    /// Declared bytes of payload.
    pub payload_len: usize,
    /// For fragments.
    pub fragment: Option<Fragment>,
    /// For bundles.
    pub bundle: Option<Bundle>,
}

impl Head {
    /// Judges the first bytes of a frame of `datagram_len` bytes: all of them, or at least [`HEAD_LEN`].
    pub fn parse(head: &[u8], datagram_len: usize) -> Result<Self, FrameError> {
        if u32::from_be_bytes(field(head, 0)?) != MAGIC {
            return Err(FrameError::Magic);
        }
        let [p0, p1, version, byte7] = field(head, 4)?;
        let version = version_of(version).ok_or(FrameError::Version)?;
        let ident = field(head, 8)?;
        let header_len = version.header_len();
        if datagram_len < header_len {
            return Err(FrameError::Short);
        }
        let payload_len = u32::from_be_bytes(field(head, version.length_at())?);
        let payload_len = usize::try_from(payload_len).map_err(|_| FrameError::Length)?;
        if payload_len > datagram_len - header_len {
            return Err(FrameError::Length);
        }
        if matches!(version, Version::Block | Version::SubtreeData) && !matches!(byte7, 1 | 2) {
            return Err(FrameError::MsgType);
        }
        let key = match version {
            Version::Legacy => FrameKey::default(),
            _ => FrameKey::from_bytes(field(head, 40)?),
        };
        let scope = match version {
            Version::Legacy | Version::Bundle => [0; 32],
            _ => field(head, 56)?,
        };
        let fragment = match version {
            Version::Fragment => Some(fragment_of(head)?),
            _ => None,
        };
        let bundle = match version {
            Version::Bundle => Some(bundle_of(head, byte7)?),
            _ => None,
        };
        let proto = u16::from_be_bytes([p0, p1]);
        Ok(Self { proto, version, byte7, ident, key, scope, header_len, payload_len, fragment, bundle })
    }

    /// The key to cache it by; `None` for what is received but not cached: legacy frames and SeqNum 0.
    pub const fn cache_key(&self) -> Option<FrameKey> {
        if self.key.seq_num() == 0 { None } else { Some(self.key) }
    }

    /// What decides about its life: that of the original for a fragment. `None` for a legacy frame.
    pub const fn class(&self) -> Option<Class> {
        match self.whole_version() {
            Some(Version::Transaction | Version::Bundle) => Some(Class::Tx),
            Some(Version::Block) => Some(Class::Block),
            Some(Version::SubtreeData) => Some(Class::Subtree),
            Some(Version::Anchor) => Some(Class::Anchor),
            Some(Version::Beef) => Some(Class::Beef),
            Some(Version::Legacy | Version::Fragment) | None => None,
        }
    }

    /// Index of the group that a multicast repair goes to: that of the original for a fragment. `None` for a legacy
    /// frame.
    pub const fn group_index(&self, sharding: &Sharding) -> Option<u16> {
        match (self.whole_version(), &self.bundle) {
            (_, Some(bundle)) => Some(bundle.group_index),
            (Some(Version::Transaction), _) => Some(sharding.shard.index(&self.ident)),
            (Some(Version::Block | Version::Anchor), _) => Some(BLOCK),
            (Some(Version::SubtreeData), _) => Some(SUBTREE_DATA),
            (Some(Version::Beef), _) => Some(sharding.beef.index(&self.scope)),
            (Some(Version::Legacy | Version::Fragment | Version::Bundle) | None, _) => None,
        }
    }

    /// The version of the whole frame.
    const fn whole_version(&self) -> Option<Version> {
        match &self.fragment {
            Some(fragment) => original_of(fragment.original_version),
            None => Some(self.version),
        }
    }

    /// Writes the header of a frame with this head and its `payload_len` into `out` and returns the header's length;
    /// the payload comes after it. Reserved bytes are zero.
    ///
    /// `None` when `out` is too short, the payload too long to tell, or `fragment` or `bundle` is not what the version
    /// has. Values are not judged: a test publisher writes bad ones too.
    pub fn write(&self, out: &mut [u8]) -> Option<usize> {
        if self.fragment.is_some() != (self.version == Version::Fragment)
            || self.bundle.is_some() != (self.version == Version::Bundle)
        {
            return None;
        }
        let out = out.get_mut(..self.version.header_len())?;
        out.fill(0);
        put(out, 0, &MAGIC.to_be_bytes())?;
        put(out, 4, &self.proto.to_be_bytes())?;
        put(out, 6, &[self.version as u8, self.byte7])?;
        put(out, 8, &self.ident)?;
        put(out, self.version.length_at(), &u32::try_from(self.payload_len).ok()?.to_be_bytes())?;
        if self.version == Version::Legacy {
            return Some(out.len());
        }
        put(out, 40, &self.key.to_bytes())?;
        if let Some(bundle) = &self.bundle {
            put(out, 56, &bundle.group_index.to_be_bytes())?;
            put(out, 58, &[bundle.shard_bits])?;
            put(out, 60, &bundle.tx_count.to_be_bytes())?;
            return Some(out.len());
        }
        put(out, 56, &self.scope)?;
        if let Some(fragment) = &self.fragment {
            put(out, 92, &fragment.original_len.to_be_bytes())?;
            put(out, 96, &fragment.index.to_be_bytes())?;
            put(out, 98, &fragment.total.to_be_bytes())?;
            put(out, 100, &[fragment.original_version])?;
        }
        Some(out.len())
    }

    /// Writes a whole frame with this head into `out` and returns its length. Both lengths of the head are those of
    /// its version and of `payload`, whatever it says. `None` as in [`Head::write`].
    pub fn write_frame(&self, payload: &[u8], out: &mut [u8]) -> Option<usize> {
        let header_len = self.version.header_len();
        put(out, header_len, payload)?;
        Self { header_len, payload_len: payload.len(), ..*self }.write(out)?;
        header_len.checked_add(payload.len())
    }
}

/// A valid frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Frame<'a> {
    head: Head,
    bytes: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The frame of a datagram. Bytes behind the declared payload belong to it.
    pub fn parse(datagram: &'a [u8]) -> Result<Self, FrameError> {
        let head = Head::parse(datagram, datagram.len())?;
        let frame = Self { head, bytes: datagram };
        if let Some(bundle) = &head.bundle {
            let mut members = Members { rest: frame.payload(), has_tx_ids: bundle.has_tx_ids };
            for _ in 0..bundle.tx_count {
                members.next().ok_or(FrameError::Bundle)?;
            }
            if !members.rest.is_empty() {
                return Err(FrameError::Bundle);
            }
        }
        Ok(frame)
    }

    /// Its header.
    pub const fn head(&self) -> &Head {
        &self.head
    }

    /// The declared payload.
    pub fn payload(&self) -> &'a [u8] {
        let end = self.head.header_len.saturating_add(self.head.payload_len);
        self.bytes.get(self.head.header_len..end).unwrap_or(&[])
    }

    /// The whole datagram.
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The members of a bundle; none for other versions.
    pub fn members(&self) -> Members<'a> {
        match &self.head.bundle {
            Some(bundle) => Members { rest: self.payload(), has_tx_ids: bundle.has_tx_ids },
            None => Members { rest: &[], has_tx_ids: false },
        }
    }
}

/// One transaction of a bundle.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Member<'a> {
    /// Its TxID, where the bundle carries them.
    pub tx_id: Option<&'a [u8; 32]>,
    /// Its bytes.
    pub transaction: &'a [u8],
}

impl Member<'_> {
    /// Writes this member into `out` and returns its length; the next comes after it. `None` when `out` is too short or
    /// the transaction longer than 65,535 bytes.
    pub fn write(&self, out: &mut [u8]) -> Option<usize> {
        let tx_id: &[u8] = self.tx_id.map_or(&[], |tx_id| tx_id);
        put(out, 0, &u16::try_from(self.transaction.len()).ok()?.to_be_bytes())?;
        put(out, 2, tx_id)?;
        let start = 2 + tx_id.len();
        put(out, start, self.transaction)?;
        start.checked_add(self.transaction.len())
    }
}

/// Walks the members of a bundle.
#[derive(Clone, Copy, Debug)]
pub struct Members<'a> {
    rest: &'a [u8],
    has_tx_ids: bool,
}

impl<'a> Iterator for Members<'a> {
    type Item = Member<'a>;

    fn next(&mut self) -> Option<Member<'a>> {
        let (length, rest) = self.rest.split_first_chunk::<2>()?;
        let (tx_id, rest) = if self.has_tx_ids {
            let (tx_id, rest) = rest.split_first_chunk::<32>()?;
            (Some(tx_id), rest)
        } else {
            (None, rest)
        };
        let (transaction, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        self.rest = rest;
        Some(Member { tx_id, transaction })
    }
}

const fn version_of(version: u8) -> Option<Version> {
    match version {
        1 => Some(Version::Legacy),
        2 => Some(Version::Transaction),
        3 => Some(Version::Fragment),
        4 => Some(Version::Block),
        5 => Some(Version::SubtreeData),
        6 => Some(Version::Anchor),
        8 => Some(Version::Bundle),
        9 => Some(Version::Beef),
        _ => None,
    }
}

/// The version that a fragment names; 0 and 2 are transactions. Fragments of fragments, legacy frames and bundles are
/// on no fabric.
const fn original_of(version: u8) -> Option<Version> {
    match version {
        0 | 2 => Some(Version::Transaction),
        4 => Some(Version::Block),
        5 => Some(Version::SubtreeData),
        6 => Some(Version::Anchor),
        9 => Some(Version::Beef),
        _ => None,
    }
}

fn fragment_of(head: &[u8]) -> Result<Fragment, FrameError> {
    let fragment = Fragment {
        original_len: u32::from_be_bytes(field(head, 92)?),
        index: u16::from_be_bytes(field(head, 96)?),
        total: u16::from_be_bytes(field(head, 98)?),
        original_version: u8::from_be_bytes(field(head, 100)?),
    };
    // An index below the total implies a total above zero.
    if fragment.index >= fragment.total {
        return Err(FrameError::Fragment);
    }
    original_of(fragment.original_version).map(|_| fragment).ok_or(FrameError::OriginalVersion)
}

fn bundle_of(head: &[u8], byte7: u8) -> Result<Bundle, FrameError> {
    let [shard_bits] = field(head, 58)?;
    Ok(Bundle {
        group_index: u16::from_be_bytes(field(head, 56)?),
        shard_bits,
        tx_count: u16::from_be_bytes(field(head, 60)?),
        has_tx_ids: byte7 & BUNDLE_HAS_TX_IDS != 0,
    })
}

/// `N` bytes of a head.
fn field<const N: usize>(head: &[u8], offset: usize) -> Result<[u8; N], FrameError> {
    chunk(head, offset).ok_or(FrameError::Short)
}
