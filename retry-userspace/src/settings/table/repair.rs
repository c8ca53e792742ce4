//! What a hit gets.

use std::time::Duration;

use crate::settings::accepts::{HOUR, ZERO, switch, time};
use crate::settings::rows::{Read, Row, Rows};

/// What a hit gets. With neither multicast nor unicast: an ACK alone, with flags 0.
#[derive(Clone, Debug)]
pub struct Repair {
    /// Repair by multicast: one repair serves all that lost the frame.
    pub multicast: bool,
    /// Repair by unicast: each NACK costs a frame.
    pub unicast: bool,
    /// No second multicast of a frame within it; zero is off. NACKs within it get the ACK alone.
    pub holddown: Duration,
}

impl Repair {
    pub(in crate::settings) fn read(rows: &mut Rows<'_>) -> Read<Self> {
        rows.group("Repair");
        Ok(Self {
            multicast: rows.read(Row {
                flag: "beacon-flags-multicast",
                env: "BEACON_FLAGS_MULTICAST",
                default: "true",
                accepts: switch(),
                meaning: "Repair by multicast, and announce it.",
                consequence: "With neither this nor -beacon-flags-unicast, hits get an ACK without flags and no frame.",
            })?,
            unicast: rows.read(Row {
                flag: "beacon-flags-unicast",
                env: "BEACON_FLAGS_UNICAST",
                default: "false",
                accepts: switch(),
                meaning: "Repair by unicast to the NACK's sender, and announce it.",
                consequence: "With both, each hit is answered twice.",
            })?,
            holddown: rows.read(Row {
                flag: "repair-holddown",
                env: "REPAIR_HOLDDOWN",
                default: "10ms",
                accepts: time(ZERO, HOUR),
                meaning: "No second multicast of a frame within this time; 0: off.",
                consequence: "Many listeners that miss one frame get one repair, and an ACK each.",
            })?,
        })
    }
}
