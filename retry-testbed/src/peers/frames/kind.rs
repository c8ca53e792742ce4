//! The kinds of frames, and the header fields that follow from the kind.

/// What a flow carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Version 1 (BRC-12): received, never cached.
    Legacy,
    /// Version 2 (BRC-124, 128): one transaction.
    Tx,
    /// Version 3 (BRC-130): fragments of a transaction, three to one.
    TxFragment,
    /// Version 3: fragments of a block message.
    BlockFragment,
    /// Version 3: fragments of subtree data.
    SubtreeFragment,
    /// Version 3: fragments of a BEEF object.
    BeefFragment,
    /// Version 4 (BRC-131): a block announcement, MsgType 1.
    Block,
    /// Version 4: a coinbase, MsgType 2.
    Coinbase,
    /// Version 5 (BRC-132): subtree data, MsgType 1.
    SubtreeData,
    /// Version 6 (BRC-134): an anchor transaction.
    Anchor,
    /// Version 8 (BRC-142): a bundle of transactions.
    Bundle,
    /// Version 9 (BRC-149): a BEEF object.
    Beef,
}

impl Kind {
    /// Every kind that an endpoint caches.
    pub const CACHED: [Self; 11] = [
        Self::Tx,
        Self::TxFragment,
        Self::BlockFragment,
        Self::SubtreeFragment,
        Self::BeefFragment,
        Self::Block,
        Self::Coinbase,
        Self::SubtreeData,
        Self::Anchor,
        Self::Bundle,
        Self::Beef,
    ];

    /// Length of its header.
    #[must_use]
    pub const fn header_length(self) -> usize {
        match self {
            Self::Legacy => 44,
            Self::Bundle => 66,
            _ if self.is_fragment() => 104,
            _ => 92,
        }
    }

    pub(super) const fn is_fragment(self) -> bool {
        matches!(self, Self::TxFragment | Self::BlockFragment | Self::SubtreeFragment | Self::BeefFragment)
    }

    pub(super) const fn frame_version(self) -> u8 {
        match self {
            Self::Legacy => 1,
            Self::Tx => 2,
            Self::TxFragment | Self::BlockFragment | Self::SubtreeFragment | Self::BeefFragment => 3,
            Self::Block | Self::Coinbase => 4,
            Self::SubtreeData => 5,
            Self::Anchor => 6,
            Self::Bundle => 8,
            Self::Beef => 9,
        }
    }

    pub(super) const fn original_version(self) -> u8 {
        match self {
            Self::BlockFragment => 4,
            Self::SubtreeFragment => 5,
            Self::BeefFragment => 9,
            _ => 2,
        }
    }

    pub(super) const fn byte7(self) -> u8 {
        match self {
            Self::Block | Self::SubtreeData | Self::BlockFragment | Self::SubtreeFragment => 1,
            Self::Coinbase => 2,
            // Bundles are made with the members' TxIDs.
            Self::Bundle => 1,
            _ => 0,
        }
    }
}
