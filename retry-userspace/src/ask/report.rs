//! What came, what is wrong with it, and what it all means.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use retry_common::crc32c;
use retry_common::group::Sharding;
use retry_common::wire::answer::{AckFlags, Answer};
use retry_common::wire::frame::{Frame, Head};
use retry_common::wire::nack::Nack;
use serde_json::{Value, json};

use super::exchange::Heard;
use crate::recovery::upstreams::is_same;

/// Length below which a datagram is no frame to a listener.
const SHORTEST_FRAME: usize = 64;

/// How it came.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Via {
    /// To the socket that asked.
    Unicast,
    /// To a group.
    Multicast,
}

impl Via {
    const fn name(self) -> &'static str {
        match self {
            Self::Unicast => "unicast",
            Self::Multicast => "multicast",
        }
    }
}

/// What came.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Came {
    /// An ACK, a MISS or a THROTTLED.
    Answer(Answer),
    /// A frame with the key that was asked for.
    Frame {
        /// Its header.
        head: Box<Head>,
        /// Bytes of the datagram.
        bytes: usize,
        /// CRC-32C of the datagram, to compare copies.
        sum: u32,
    },
    /// Anything else to the socket that asked: what it is.
    Other(String),
    /// An ICMP error.
    Unreachable,
}

/// One thing that came.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Event {
    /// Time since the NACK left.
    pub(super) after: Duration,
    /// Its source; `None` for an ICMP error.
    pub(super) from: Option<SocketAddr>,
    /// The group that it came to.
    pub(super) to: Option<Ipv6Addr>,
    /// How.
    pub(super) via: Via,
    /// What.
    pub(super) came: Came,
}

/// What it all means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Outcome {
    /// The frame came, and nothing is wrong.
    Frame,
    /// The endpoint does not have it.
    Miss,
    /// The endpoint says to ask later.
    Throttled,
    /// An ACK without a frame that would have had to come here.
    AckAlone,
    /// Nothing.
    Silence,
    /// Something is not as it should be.
    Wrong,
}

impl Outcome {
    /// The exit code.
    pub(super) const fn code(self) -> u8 {
        match self {
            Self::Frame => 0,
            Self::Miss => 1,
            Self::Throttled => 3,
            Self::AckAlone => 4,
            Self::Silence => 5,
            Self::Wrong => 6,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Frame => "frame",
            Self::Miss => "miss",
            Self::Throttled => "throttled",
            Self::AckAlone => "ack",
            Self::Silence => "silence",
            Self::Wrong => "wrong",
        }
    }
}

/// All that came for one NACK.
#[derive(Clone, Debug)]
pub(super) struct Report {
    asked: SocketAddr,
    own: SocketAddr,
    nack: Nack,
    sharding: Sharding,
    /// Groups that were joined; `None` when multicast was not listened for.
    pub(super) joined: Option<usize>,
    events: Vec<Event>,
    /// What is not as it should be, in the order in which it was seen.
    problems: Vec<String>,
    /// Datagrams that the stack dropped meanwhile for a wrong checksum.
    pub(super) checksum_errors: u64,
}

impl Report {
    /// Nothing has come yet.
    pub(super) const fn new(asked: SocketAddr, own: SocketAddr, nack: Nack, sharding: Sharding) -> Self {
        Self { asked, own, nack, sharding, joined: None, events: Vec::new(), problems: Vec::new(), checksum_errors: 0 }
    }

    /// Takes what a socket gave.
    pub(super) fn hear(&mut self, after: Duration, heard: Heard<'_>) {
        let event = match heard {
            Heard::Unreachable => Event { after, from: None, to: None, via: Via::Unicast, came: Came::Unreachable },
            Heard::Unicast(bytes, from) => {
                if !is_same(from, self.asked) {
                    self.problems.push(format!(
                        "{from} answers, not {}: listeners that connect their socket never see it",
                        self.asked
                    ));
                }
                let came = self.judge(bytes);
                Event { after, from: Some(from), to: None, via: Via::Unicast, came }
            }
            // The groups carry all frames of the fabric.
            Heard::Multicast(bytes, from, group) => match Frame::parse(bytes) {
                Ok(frame) if frame.head().key == self.nack.key => {
                    let came = self.frame(&frame);
                    self.judge_group(frame.head(), group);
                    Event { after, from: Some(from), to: Some(group), via: Via::Multicast, came }
                }
                _ => return,
            },
        };
        self.take(event);
    }

    /// Adds what came.
    pub(super) fn take(&mut self, event: Event) {
        self.events.push(event);
    }

    fn judge(&mut self, bytes: &[u8]) -> Came {
        let seq_num = self.nack.key.seq_num();
        if bytes.len() < SHORTEST_FRAME {
            return match Answer::parse(bytes) {
                Ok(answer) => {
                    if let Answer::Ack { seq_num: of, .. } | Answer::Throttled { seq_num: of, .. } = answer
                        && of != seq_num
                    {
                        self.problems.push(format!("the answer is for frame {of}, not {seq_num}"));
                    }
                    if let Answer::Ack { flags, .. } = answer
                        && flags.bits() & !0x03 != 0
                    {
                        self.problems.push(format!("the ACK has flags {:#04x} that mean nothing", flags.bits()));
                    }
                    Came::Answer(answer)
                }
                Err(error) => self.other(bytes, &error.to_string()),
            };
        }
        match Frame::parse(bytes) {
            Ok(frame) if frame.head().key == self.nack.key => self.frame(&frame),
            Ok(frame) => self.other(bytes, &format!("a frame of another key, {}", frame.head().key)),
            Err(error) => self.other(bytes, &error.to_string()),
        }
    }

    fn other(&mut self, bytes: &[u8], why: &str) -> Came {
        let what = format!("{} bytes that are no answer: {why}", bytes.len());
        self.problems.push(what.clone());
        Came::Other(what)
    }

    fn frame(&mut self, frame: &Frame<'_>) -> Came {
        let sum = crc32c::of(&[frame.bytes()]);
        let earlier = self.events.iter().find_map(|event| match event.came {
            Came::Frame { sum, bytes, .. } => Some((sum, bytes)),
            _ => None,
        });
        if earlier.is_some_and(|earlier| earlier != (sum, frame.bytes().len())) {
            self.problems.push("two copies of the frame differ".to_owned());
        }
        Came::Frame { head: Box::new(*frame.head()), bytes: frame.bytes().len(), sum }
    }

    fn judge_group(&mut self, head: &Head, group: Ipv6Addr) {
        let [.., high, low] = group.octets();
        let index = u16::from_be_bytes([high, low]);
        match head.group_index(&self.sharding) {
            Some(wanted) if wanted != index => {
                self.problems.push(format!("the repair came to group index {index:#06x}; its bytes say {wanted:#06x}"));
            }
            _ => {}
        }
    }

    fn answer(&self) -> Option<Answer> {
        self.events.iter().find_map(|event| match event.came {
            Came::Answer(answer) => Some(answer),
            _ => None,
        })
    }

    fn frames(&self, via: Via) -> usize {
        self.events.iter().filter(|event| event.via == via && matches!(event.came, Came::Frame { .. })).count()
    }

    /// Repairs that the ACK promises, that would have to come here, and that did not.
    fn missing(&self) -> Vec<&'static str> {
        let Some(Answer::Ack { flags, .. }) = self.answer() else { return Vec::new() };
        let mut missing = Vec::new();
        if has(flags, AckFlags::UNICAST) && self.frames(Via::Unicast) == 0 {
            missing.push("the unicast copy that the ACK promises did not come");
        }
        if has(flags, AckFlags::MULTICAST) && self.joined.is_some() && self.frames(Via::Multicast) == 0 {
            missing.push(
                "the multicast repair that the ACK promises did not come: it is lost, or left before, within -repair-holddown",
            );
        }
        missing
    }

    /// A unicast copy came first.
    fn came_before_the_answer(&self) -> bool {
        let before = self.events.iter().take_while(|event| !matches!(event.came, Came::Answer(_)));
        before.into_iter().any(|event| event.via == Via::Unicast && matches!(event.came, Came::Frame { .. }))
    }

    /// The answer was a MISS, and no frame has come yet.
    pub(super) fn may_be_recovered(&self) -> bool {
        self.answer() == Some(Answer::Miss) && self.frames(Via::Unicast) + self.frames(Via::Multicast) == 0
    }

    /// True when there is nothing more to wait for.
    pub(super) fn is_whole(&self) -> bool {
        self.answer().is_some() && self.missing().is_empty()
            || self.events.iter().any(|event| event.came == Came::Unreachable)
    }

    /// Everything that is not as it should be.
    fn all_problems(&self) -> Vec<String> {
        let mut problems = self.problems.clone();
        problems.extend(self.missing().into_iter().map(str::to_owned));
        match self.answer() {
            // By multicast it may be for others, and what comes after a MISS has been recovered.
            Some(Answer::Miss) if self.came_before_the_answer() => {
                problems.push("a unicast copy came before the MISS".to_owned());
            }
            Some(Answer::Throttled { .. }) if self.frames(Via::Unicast) > 0 => {
                problems.push("a unicast copy came beside a THROTTLED".to_owned());
            }
            Some(Answer::Ack { flags, .. }) if !has(flags, AckFlags::UNICAST) && self.frames(Via::Unicast) > 0 => {
                problems.push("a unicast copy came that the ACK does not name".to_owned());
            }
            _ => {}
        }
        if self.checksum_errors > 0 {
            problems.push(format!(
                "the stack dropped {} datagrams with a wrong UDP checksum meanwhile",
                self.checksum_errors
            ));
        }
        problems
    }

    /// What it all means.
    pub(super) fn outcome(&self) -> Outcome {
        if !self.all_problems().is_empty() {
            return Outcome::Wrong;
        }
        match self.answer() {
            _ if self.frames(Via::Unicast) + self.frames(Via::Multicast) > 0 => Outcome::Frame,
            Some(Answer::Miss) => Outcome::Miss,
            Some(Answer::Throttled { .. }) => Outcome::Throttled,
            Some(Answer::Ack { .. }) => Outcome::AckAlone,
            None => Outcome::Silence,
        }
    }

    fn verdict(&self) -> String {
        match self.outcome() {
            Outcome::Frame if self.answer().is_none() => {
                "ok: the frame came, and its bytes are a valid frame of this key; no ACK did (-suppress-ack)".to_owned()
            }
            Outcome::Frame if self.answer() == Some(Answer::Miss) => {
                "ok: the frame came after the MISS: recovered from upstream, or repaired by another endpoint".to_owned()
            }
            Outcome::Frame => "ok: the frame came, and its bytes are a valid frame of this key".to_owned(),
            Outcome::Miss => "MISS: the endpoint does not have the frame".to_owned(),
            Outcome::Throttled => "THROTTLED: a limit of the endpoint, ask later".to_owned(),
            Outcome::AckAlone => match self.answer() {
                Some(Answer::Ack { flags, .. }) if has(flags, AckFlags::MULTICAST) => {
                    "ACK: the frame left by multicast, which was not listened for (-iface)".to_owned()
                }
                _ => "ACK without a repair: the endpoint has the frame, and sends it by neither way".to_owned(),
            },
            Outcome::Silence if self.events.iter().any(|event| event.came == Came::Unreachable) => {
                "unreachable (ICMP): no program takes NACKs there".to_owned()
            }
            Outcome::Silence => {
                "no answer: no endpoint there, a filter on the way, a limit, or -suppress-miss".to_owned()
            }
            Outcome::Wrong => format!("WRONG: {}", self.all_problems().join("; ")),
        }
    }

    /// One object with everything.
    pub(super) fn json(&self) -> Value {
        let events: Vec<Value> = self.events.iter().map(Event::json).collect();
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        json!({
            "asked": self.asked,
            "from": self.own,
            "hash_key": format!("{:016x}", self.nack.key.hash_key()),
            "seq_num": self.nack.key.seq_num(),
            "flags": self.nack.flags,
            "subtree_id": hex(&self.nack.subtree_id),
            "joined_groups": self.joined,
            "events": events,
            "checksum_errors": self.checksum_errors,
            "problems": self.all_problems(),
            "outcome": self.outcome().name(),
            "verdict": self.verdict(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "frame {} asked of {} from {}", self.nack.key, self.asked, self.own)?;
        for event in &self.events {
            writeln!(f, "{event}")?;
        }
        writeln!(f, "{}", self.verdict())
    }
}

impl Event {
    fn json(&self) -> Value {
        let mut object = json!({
            // To the microsecond: what is finer is the clock's.
            "after_ms": (self.after.as_secs_f64() * 1e6).round() / 1e3,
            "via": self.via.name(),
            "from": self.from,
            "group": self.to,
        });
        let more = match &self.came {
            Came::Answer(Answer::Ack { flags, seq_num }) => json!({
                "type": "ack",
                "multicast": has(*flags, AckFlags::MULTICAST),
                "unicast": has(*flags, AckFlags::UNICAST),
                "seq_num": seq_num,
            }),
            Came::Answer(Answer::Miss) => json!({ "type": "miss" }),
            Came::Answer(Answer::Throttled { bucket, seq_num }) => json!({
                "type": "throttled",
                "bucket": bucket,
                "hold_ms": hold_ms(*bucket),
                "seq_num": seq_num,
            }),
            Came::Frame { head, bytes, sum } => json!({
                "type": "frame",
                "version": head.version as u8,
                "class": head.class().map(retry_common::wire::frame::Class::name),
                "bytes": bytes,
                "payload_bytes": head.payload_len,
                "crc32c": format!("{sum:08x}"),
            }),
            Came::Other(what) => json!({ "type": "other", "what": what }),
            Came::Unreachable => json!({ "type": "unreachable" }),
        };
        if let (Some(object), Value::Object(more)) = (object.as_object_mut(), more) {
            object.extend(more);
        }
        object
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>10.3} ms  ", self.after.as_secs_f64() * 1e3)?;
        match &self.came {
            Came::Answer(Answer::Ack { flags, .. }) => {
                let ways: Vec<&str> = [(AckFlags::MULTICAST, "multicast"), (AckFlags::UNICAST, "unicast")]
                    .iter()
                    .filter(|(flag, _)| has(*flags, *flag))
                    .map(|(_, way)| *way)
                    .collect();
                let ways = if ways.is_empty() { "neither way".to_owned() } else { ways.join(" and ") };
                write!(f, "ACK        sent by {ways}")?;
            }
            Came::Answer(Answer::Miss) => write!(f, "MISS")?,
            Came::Answer(Answer::Throttled { bucket, .. }) => {
                write!(f, "THROTTLED  hold for {} ms", hold_ms(*bucket))?;
            }
            Came::Frame { head, bytes, sum } => {
                let class = head.class().map_or("-", retry_common::wire::frame::Class::name);
                let version = head.version as u8;
                write!(f, "frame      by {}, {bytes} bytes, V{version} {class}, CRC-32C {sum:08x}", self.via.name())?;
            }
            Came::Other(what) => write!(f, "?          {what}")?,
            Came::Unreachable => write!(f, "ICMP       unreachable")?,
        }
        if let Some(group) = self.to {
            write!(f, ", to {group}")?;
        }
        self.from.map_or(Ok(()), |from| write!(f, ", from {from}"))
    }
}

const fn has(flags: AckFlags, flag: AckFlags) -> bool {
    flags.bits() & flag.bits() != 0
}

/// How long a THROTTLED asks a listener to hold, milliseconds.
const fn hold_ms(bucket: u8) -> u64 {
    125 << bucket
}
