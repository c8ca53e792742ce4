//! An endpoint in plain collections: limits are counts, because no time passes in a conversation.

use std::collections::{HashMap, HashSet};

use retry_common::{
    counter::Counter,
    decide::{CachedFrame, Endpoint, Multicast},
    key::FrameKey,
    limits::bytes::{Afforded, Leaving},
};

/// A frame of the model's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) key: FrameKey,
    pub(crate) group: u16,
    pub(crate) daemon_only: bool,
    /// Bytes of the frame.
    pub(crate) length: u32,
}

impl CachedFrame for Frame {
    fn group(&self) -> u16 {
        self.group
    }
}

/// How much each limit lets through; 0 is off.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Most {
    pub(crate) address: u32,
    pub(crate) group: u32,
    pub(crate) sequence: u32,
    pub(crate) chain: u32,
    /// Bytes to one listener.
    pub(crate) source_bytes: u32,
    /// Bytes to all.
    pub(crate) total_bytes: u32,
    /// Bytes for one NACK, of a listener that has not shown that it hears.
    pub(crate) unproven: u32,
}

impl Most {
    pub(crate) const fn has_budget(&self) -> bool {
        self.source_bytes | self.total_bytes | self.unproven != 0
    }
}

/// Which frames this side can send.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sends {
    /// Any: a socket.
    All,
    /// None.
    None,
    /// Those that are not the daemon's, and multicast only where it need not loop back.
    Kernel {
        /// Multicast is the daemon's.
        daemon_multicast: bool,
    },
}

/// One side in one conversation.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    most: Most,
    sends: Sends,
    hold_down: bool,
    frames: HashMap<FrameKey, Frame>,
    addresses: HashMap<u8, u32>,
    groups: HashMap<(u8, u16), u32>,
    sequences: HashMap<FrameKey, u32>,
    chains: HashMap<(u8, u64), u32>,
    multicast: HashSet<FrameKey>,
    sources: HashMap<u8, u32>,
    total: u32,
}

impl Model {
    pub(crate) fn new(most: Most, sends: Sends, hold_down: bool, frames: &[Frame]) -> Self {
        Self {
            most,
            sends,
            hold_down,
            frames: frames.iter().map(|frame| (frame.key, *frame)).collect(),
            addresses: HashMap::new(),
            groups: HashMap::new(),
            sequences: HashMap::new(),
            chains: HashMap::new(),
            multicast: HashSet::new(),
            sources: HashMap::new(),
            total: 0,
        }
    }

    /// The model at one NACK of one listener.
    pub(crate) fn at(&mut self, key: FrameKey, listener: u8) -> At<'_> {
        At { sends: self.sends, model: self, key, listener, counted: Vec::new(), admitted: false }
    }
}

/// One NACK, as the model sees it.
#[derive(Debug)]
pub(crate) struct At<'a> {
    model: &'a mut Model,
    key: FrameKey,
    listener: u8,
    /// What was counted.
    pub(crate) counted: Vec<Counter>,
    /// Another side charged every limit.
    pub(crate) admitted: bool,
    /// Which frames this side can send.
    pub(crate) sends: Sends,
}

fn take<K: std::hash::Hash + Eq>(taken: &mut HashMap<K, u32>, key: K, most: u32) -> bool {
    let taken = taken.entry(key).or_default();
    let over = most != 0 && *taken >= most;
    *taken += u32::from(!over);
    !over
}

impl Endpoint for At<'_> {
    type Frame = Frame;

    fn take_address(&mut self) -> bool {
        take(&mut self.model.addresses, self.listener, self.model.most.address)
    }

    fn sequence_is_over(&mut self) -> bool {
        let most = self.model.most.sequence;
        most != 0 && self.model.sequences.get(&self.key).is_some_and(|asked| *asked >= most)
    }

    fn take_sequence(&mut self) -> bool {
        self.admitted || take(&mut self.model.sequences, self.key, self.model.most.sequence)
    }

    /// No listener of this suite is known.
    fn is_known(&mut self) -> bool {
        false
    }

    fn take_chain(&mut self) -> bool {
        take(&mut self.model.chains, (self.listener, self.key.hash_key()), self.model.most.chain)
    }

    fn look_up(&mut self) -> Option<Frame> {
        self.model.frames.get(&self.key).copied()
    }

    fn take_group(&mut self, group: u16) -> bool {
        take(&mut self.model.groups, (self.listener, group), self.model.most.group)
    }

    fn can_send(&mut self, frame: &Frame, multicast: bool, _ack: bool) -> bool {
        match self.sends {
            Sends::All => true,
            Sends::None => false,
            Sends::Kernel { daemon_multicast } => !(frame.daemon_only || multicast && daemon_multicast),
        }
    }

    fn claim_multicast(&mut self) -> Multicast {
        if self.model.multicast.insert(self.key) || !self.model.hold_down {
            Multicast::Claimed
        } else {
            Multicast::HeldByUs
        }
    }

    fn peek_multicast(&mut self) -> Multicast {
        if self.model.hold_down && self.model.multicast.contains(&self.key) {
            Multicast::HeldByUs
        } else {
            Multicast::Claimed
        }
    }

    /// All frames of this suite fit a packet.
    fn packet_bytes(&self, frame: &Frame) -> u32 {
        frame.length + 48
    }

    fn egress_interfaces(&self) -> u32 {
        1
    }

    /// No listener of this suite has shown that it hears.
    fn afford(&mut self, leaving: &Leaving) -> Afforded {
        let Model { most, sources, total, .. } = &mut *self.model;
        let source = sources.entry(self.listener).or_default();
        // Strangers have half of it.
        let over_total = most.total_bytes != 0 && *total + leaving.all > most.total_bytes / 2;
        if most.unproven != 0 && leaving.to_source > most.unproven {
            Afforded::Unproven
        } else if over_total && leaving.all != 0 {
            Afforded::OverTotal
        } else if most.source_bytes != 0 && leaving.to_source != 0 && *source + leaving.to_source > most.source_bytes {
            Afforded::OverSource
        } else {
            *source += leaving.to_source;
            *total += leaving.all;
            Afforded::Yes
        }
    }

    fn count(&mut self, counter: Counter) {
        self.counted.push(counter);
    }
}
