//! What a check of a frame log found, as data and as text.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Findings that are told in full; of the others, only how many there are.
const EXAMPLES: usize = 10;

/// What may be wrong.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An index entry leads to a record that was dropped, or to a slot that was never written.
    Dropped,
    /// An index entry leads to a record that is being written, and does not get ready.
    Unfinished,
    /// The record's version names a place that is not in use, or another slot: these bytes are no record.
    Outside,
    /// An index entry leads into the middle of another record.
    OffChain,
    /// The record's key belongs to another bucket, or has another tag.
    Misplaced,
    /// The record goes beyond its segment.
    Straddling,
    /// Two index entries lead to one slot.
    DoubledSlot,
    /// Two entries of one bucket have the same tag, and both are followed.
    DoubledTag,
    /// From one record of a lane no other can be reached, though there is one.
    Chain,
    /// The lane table counts other records than there are.
    Records,
    /// The daemon counts other entries than there are.
    Live,
    /// The words of the lane table contradict each other.
    LaneWords,
    /// The bytes of a record have another sum than its header says.
    Torn,
}

impl Kind {
    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dropped => "dropped",
            Self::Unfinished => "unfinished",
            Self::Outside => "outside",
            Self::OffChain => "off_chain",
            Self::Misplaced => "misplaced",
            Self::Straddling => "straddling",
            Self::DoubledSlot => "doubled_slot",
            Self::DoubledTag => "doubled_tag",
            Self::Chain => "chain",
            Self::Records => "records",
            Self::Live => "live",
            Self::LaneWords => "lane_words",
            Self::Torn => "torn",
        }
    }
}

/// One finding.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct Example {
    /// What is wrong.
    pub kind: Kind,
    /// Where, and what stands there.
    pub detail: String,
}

/// What a lane holds.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Deserialize, Serialize)]
pub struct LaneReport {
    /// Index entries that lead to this lane.
    pub frames: u64,
    /// Records from the oldest to the last that the daemon has followed, fillers included.
    pub records: u64,
    /// Fillers among them.
    pub fillers: u64,
    /// True when the number of records was compared with the lane table's; false while the daemon writes all the time.
    pub records_compared: bool,
    /// Records whose bytes were summed.
    pub sums: u64,
}

/// What a check found.
#[derive(Clone, Debug, Default, Eq, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Report {
    /// Buckets of the index.
    pub buckets: u32,
    /// Index entries that are not empty.
    pub entries: u64,
    /// True when the number of entries was compared with the daemon's; false while it writes all the time.
    pub live_compared: bool,
    /// Entries whose frame was being written when the check ended.
    pub in_flight: u64,
    /// Short-lived classes, long-lived classes.
    pub lanes: [LaneReport; 2],
    /// Findings of each kind.
    pub findings: BTreeMap<Kind, u64>,
    /// The first of them.
    pub examples: Vec<Example>,
    /// How long the check took, milliseconds.
    pub took_ms: u64,
}

impl Report {
    /// True when nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    pub(super) fn find(&mut self, kind: Kind, detail: String) {
        *self.findings.entry(kind).or_default() += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(Example { kind, detail });
        }
    }

    pub(super) fn took(&mut self, time: Duration) {
        self.took_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let compared = |compared| if compared { "as counted" } else { "not compared, for they change all the time" };
        let Self { buckets, entries, took_ms, .. } = self;
        writeln!(
            f,
            "{entries} entries ({}) in {buckets} buckets, checked in {took_ms} ms",
            compared(self.live_compared)
        )?;
        for (lane, name) in self.lanes.iter().zip(["short-lived", "long-lived"]) {
            let LaneReport { frames, records, fillers, records_compared, sums } = lane;
            let compared = compared(*records_compared);
            writeln!(f, "{name}: {frames} frames, {records} records ({compared}), {fillers} fillers, {sums} sums")?;
        }
        if self.in_flight > 0 {
            writeln!(f, "{} frames were being written", self.in_flight)?;
        }
        if self.is_clean() {
            return f.write_str("ok");
        }
        let kinds: Vec<_> = self.findings.iter().map(|(kind, count)| format!("{} {count}", kind.name())).collect();
        write!(f, "{} findings: {}", self.findings.values().sum::<u64>(), kinds.join(", "))?;
        for example in &self.examples {
            write!(f, "\n  {}: {}", example.kind.name(), example.detail)?;
        }
        Ok(())
    }
}
