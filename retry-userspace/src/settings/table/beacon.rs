//! How the endpoint is announced.

use std::time::Duration;

use crate::settings::accepts::{Bound, SECOND, one_of, switch, time, whole};
use crate::settings::rows::{Read, Row, Rows};
use retry_common::wire::advert::BeaconScope;

/// Which groups ADVERTs go to while the data plane's sources are named.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ControlGroupCompat {
    /// The any-source groups (FF0x).
    AsmOnly,
    /// Both.
    Both,
    /// The source-specific groups (FF3x).
    Derived,
}

/// How the endpoint is announced.
#[derive(Clone, Debug)]
pub struct Beacon {
    /// Send ADVERTs. Without them listeners need a setting of their own.
    pub enabled: bool,
    /// At most 254. Listeners ask lower ones first.
    pub tier: u8,
    /// Within the tier; listeners ask higher ones first.
    pub preference: u8,
    /// At least 1 s. Listeners forget us after three.
    pub interval: Duration,
    /// How far. Listeners outside do not hear of us.
    pub scope: BeaconScope,
    /// Which groups ADVERTs go to under SSM.
    pub control_groups: ControlGroupCompat,
    /// Announce Draining from the start. Listeners prefer others.
    pub draining: bool,
}

/// The interval of a beacon has two bytes of seconds on the wire.
const LONGEST_INTERVAL: Bound = (Duration::from_secs(18 * 3600), "18h");

impl Beacon {
    pub(in crate::settings) fn read(rows: &mut Rows<'_>) -> Read<Self> {
        rows.group("Beacon");
        Ok(Self {
            enabled: rows.read(Row {
                flag: "beacon-enabled",
                env: "BEACON_ENABLED",
                default: "true",
                accepts: switch(),
                meaning: "Send ADVERT beacons.",
                consequence: "Without them listeners know the endpoint only from their own settings.",
            })?,
            tier: rows.read(Row {
                flag: "beacon-tier",
                env: "BEACON_TIER",
                default: "0",
                accepts: whole(0..=254),
                meaning: "Tier announced.",
                consequence: "Listeners ask lower tiers first.",
            })?,
            preference: rows.read(Row {
                flag: "beacon-preference",
                env: "BEACON_PREFERENCE",
                default: "128",
                accepts: whole(0..=u8::MAX),
                meaning: "Preference announced within the tier.",
                consequence: "Listeners ask higher ones first.",
            })?,
            interval: rows.read(Row {
                flag: "beacon-interval",
                env: "BEACON_INTERVAL",
                default: "60s",
                accepts: time(SECOND, LONGEST_INTERVAL),
                meaning: "Time between beacons.",
                consequence: "Listeners forget an endpoint after three intervals of silence.",
            })?,
            scope: rows.read(Row {
                flag: "beacon-scope",
                env: "BEACON_SCOPE",
                default: "site",
                accepts: one_of(&[
                    ("site", BeaconScope::Site),
                    ("org", BeaconScope::Org),
                    ("global", BeaconScope::Global),
                    ("both", BeaconScope::All),
                    ("all", BeaconScope::All),
                ]),
                meaning: "Scopes of the beacon; both and all: all three.",
                consequence: "Listeners outside it do not hear of the endpoint.",
            })?,
            control_groups: rows.read(Row {
                flag: "control-group-compat",
                env: "CONTROL_GROUP_COMPAT",
                default: "asm-only",
                accepts: one_of(&[
                    ("asm-only", ControlGroupCompat::AsmOnly),
                    ("both", ControlGroupCompat::Both),
                    ("derived", ControlGroupCompat::Derived),
                ]),
                meaning: "Groups of the beacon with -source-mode ssm: any-source ones (FF0x), both, or source-specific ones (FF3x).",
                consequence: "Listeners that join only the others do not hear of the endpoint. What other hosts send is heard on both.",
            })?,
            draining: rows.read(Row {
                flag: "beacon-flags-draining",
                env: "BEACON_FLAGS_DRAINING",
                default: "false",
                accepts: switch(),
                meaning: "Announce Draining from the start.",
                consequence: "Listeners prefer other endpoints; NACKs are still answered.",
            })?,
        })
    }
}
