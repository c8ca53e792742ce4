//! What a line of the verdict table says, and how it is carried out.

use std::{
    net::{Ipv6Addr, SocketAddrV6},
    time::Duration,
};

use rand::{RngCore as _, SeedableRng as _, rngs::SmallRng};
use retry_common::{
    abi::{Limits, Settings},
    counter::Counter,
    holddown::HoldDown,
    key::FrameKey,
    limits::{TokenBucket, Window},
};
use retry_testbed::{
    net::packet::PacketBuilder,
    peers::answer::nack_with_flags,
    xdp::{
        expect::{Out, compare, once},
        fixture::{Loaded, NACK_ADDRESS},
    },
};

/// Longer than any machine runs: a window whose border no test ever sees.
const FOREVER_NS: u64 = 1 << 58;
/// An hour.
pub(crate) const HOLD_NS: u64 = 3_600_000_000_000;
const HOUR: Duration = Duration::from_secs(3_600);
/// The UDP port that NACKs come from.
const PORT: u16 = 40_000;
/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ask {
    /// The frame of this number, which is in the log.
    Have(usize),
    /// A frame that is not there.
    Lack,
    /// A frame of this number of flow 0 that is not there.
    LackOfFlowZero,
    /// A frame that is there and has HashKey 0.
    HaveOfFlowZero,
    /// A frame that the daemon alone can send.
    Oversize,
    /// A frame whose life is over.
    Expired,
}

/// One NACK and what comes of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    /// What is asked for.
    pub(crate) ask: Ask,
    /// Flags of the NACK.
    pub(crate) flags: u8,
    /// Which of several listeners asks.
    pub(crate) from: u8,
    /// What comes of it.
    pub(crate) out: Out,
    /// What is counted, each once, and nothing else.
    pub(crate) counted: &'static [Counter],
}

/// The first listener asks.
pub(crate) const fn asks(ask: Ask, out: Out, counted: &'static [Counter]) -> Step {
    Step { ask, flags: 0, from: 0, out, counted }
}

impl Step {
    /// With these flags in the NACK.
    pub(crate) const fn flags(self, flags: u8) -> Self {
        Self { flags, ..self }
    }

    /// Another listener asks.
    pub(crate) const fn from(self, from: u8) -> Self {
        Self { from, ..self }
    }
}

/// A conversation under one policy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    /// What is shown.
    pub(crate) name: &'static str,
    /// Setting flags.
    pub(crate) flags: u32,
    /// Tokens of (address, address and group), counts of (frame, address and flow); 0 is off.
    pub(crate) limits: [u32; 4],
    /// Whether a multicast silences the next one, for an hour.
    pub(crate) hold_down: bool,
    /// In their order.
    pub(crate) steps: &'static [Step],
}

impl Case {
    /// The settings of this case.
    pub(crate) fn settings(&self, base: Settings) -> Settings {
        let [address, group, sequence, chain] = self.limits;
        Settings {
            flags: self.flags,
            limits: Limits {
                address: bucket(address),
                group: bucket(group),
                sequence: Window::new(sequence, FOREVER_NS),
                chain: Window::new(chain, FOREVER_NS),
            },
            hold_down: HoldDown { ours_ns: if self.hold_down { HOLD_NS } else { 0 }, others_ns: 0 },
            ..base
        }
    }
}

/// `burst` tokens, of which one comes back after a second: a case takes milliseconds.
fn bucket(burst: u32) -> TokenBucket {
    if burst == 0 { TokenBucket::default() } else { TokenBucket::new(1, burst) }
}

/// Frames and listeners of one conversation.
pub(crate) struct Scene<'a> {
    loaded: &'a mut Loaded,
    number: u16,
    frames: Vec<(FrameKey, Vec<u8>)>,
}

/// Lengths of the frames that a scene has, odd ones among them.
pub(crate) const LENGTHS: [usize; 6] = [400, 401, 66, 1_500, 3_391, 3_392];
const OVERSIZE: usize = LENGTHS.len();
const EXPIRED: usize = OVERSIZE + 1;
const FLOW_ZERO: usize = OVERSIZE + 2;

impl<'a> Scene<'a> {
    /// Fresh frames and listeners; the number tells scenes apart.
    pub(crate) fn new(loaded: &'a mut Loaded, number: u16) -> Self {
        let mut random = SmallRng::seed_from_u64(u64::from(number));
        let flow = 0xABCD_0000_0000_0000 | u64::from(number);
        let mut frames = Vec::new();
        for (seq_num, length) in (1u64..).zip(LENGTHS.into_iter().chain([1_400, 300, 300])) {
            let mut bytes = vec![0; length];
            random.fill_bytes(&mut bytes);
            let place = frames.len();
            let key = match place {
                FLOW_ZERO => FrameKey::new(0, u64::from(number)),
                _ => FrameKey::new(flow, seq_num),
            };
            let life = if place == EXPIRED { Duration::ZERO } else { HOUR };
            loaded.put(key, group(place), &bytes, life, place == OVERSIZE);
            frames.push((key, bytes));
        }
        Self { loaded, number, frames }
    }

    fn wanted(&self, ask: Ask) -> (FrameKey, &[u8]) {
        let place = match ask {
            Ask::Have(place) => place,
            Ask::Oversize => OVERSIZE,
            Ask::Expired => EXPIRED,
            Ask::HaveOfFlowZero => FLOW_ZERO,
            Ask::Lack => return (FrameKey::new(self.frames[0].0.hash_key(), 1_000), &[]),
            Ask::LackOfFlowZero => return (FrameKey::new(0, 1_000_000 + u64::from(self.number)), &[]),
        };
        let (key, bytes) = &self.frames[place];
        (*key, bytes)
    }

    /// The key of the scene's frame of this number.
    pub(crate) fn key(&self, place: usize) -> FrameKey {
        self.frames[place].0
    }

    /// The program, for a change on the way.
    pub(crate) const fn loaded(&mut self) -> &mut Loaded {
        self.loaded
    }

    /// The NACK of a step.
    pub(crate) fn nack(&self, step: &Step) -> PacketBuilder {
        let source = Ipv6Addr::new(0xFD10, 0, 0, 1, 0, 0, self.number, 0x10 + u16::from(step.from));
        let bytes = nack_with_flags(self.wanted(step.ask).0, step.flags);
        let mut packet = PacketBuilder::udp(SocketAddrV6::new(source, PORT, 0, 0), NACK_ADDRESS, &bytes);
        // Neither must come back in an answer.
        packet.traffic_class = 0xB8;
        packet.flow_label = 0x5_4321;
        packet.hop_limit = 3;
        packet
    }

    /// Sends the NACK of a step and compares what comes of it.
    pub(crate) fn play(&mut self, name: &str, step: &Step) {
        let nack = self.nack(step);
        let name = format!("{name}, {step:?}");
        let ran = self.loaded.run(&nack.build()).expect("a packet of a legal length");
        let events = self.loaded.take_events();
        assert_eq!(ran.counted, once(step.counted), "{name}: counters");
        compare(self.loaded, &name, &nack, self.wanted(step.ask), step.out, &ran, &events);
    }
}

/// The group index of a scene's frames: two share one.
pub(crate) const fn group(place: usize) -> u16 {
    if place < 2 { 3 } else { 0xFFFE }
}
