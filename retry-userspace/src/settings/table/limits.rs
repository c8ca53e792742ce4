//! Who may ask how often.

use std::time::Duration;

use crate::settings::accepts::{HOUR, MILLISECOND, switch, time, whole};
use crate::settings::rows::{Alias, Read, Row, Rows};

/// Who may ask how often; a rate or count of 0 is off.
#[derive(Clone, Debug)]
pub struct Limits {
    /// NACKs per second from one address. Over it: silence.
    pub ip_rate: u32,
    /// NACKs at once from one address. Above 0 while the rate is.
    pub ip_burst: u32,
    /// NACKs per window from one address for one flow. Over it: silence or THROTTLED.
    pub chain_rate: u32,
    /// That window.
    pub chain_window: Duration,
    /// Answers per window for one frame. Over it: silence or THROTTLED.
    pub sequence_max: u32,
    /// That window.
    pub sequence_window: Duration,
    /// Hits per second from one address in one group. Over it: silence or THROTTLED.
    pub group_rate: u32,
    /// Hits at once from one address in one group. Above 0 while the rate is.
    pub group_burst: u32,
    /// Say THROTTLED; never for the limit of an address.
    pub throttle_response: bool,
    /// Entries of each limit table. When full, the entry that has used least of its limit goes.
    pub table_entries: u32,
}

/// A limit's word has 20 bits for a count.
const MOST_COUNTED: u32 = 1_000_000;
/// A token must take at least a nanosecond to come back.
const HIGHEST_RATE: u32 = 1_000_000_000;

impl Limits {
    pub(in crate::settings) fn read(rows: &mut Rows<'_>) -> Read<Self> {
        rows.group("Limits");
        Ok(Self {
            ip_rate: rows.read(Row {
                flag: "rl-ip-rate",
                env: "RL_IP_RATE",
                default: "100",
                accepts: whole(0..=HIGHEST_RATE),
                meaning: "NACKs per second from one address; 0: no limit.",
                consequence: "Over it: silence.",
            })?,
            ip_burst: rows.read(Row {
                flag: "rl-ip-burst",
                env: "RL_IP_BURST",
                default: "10",
                accepts: whole(0..=MOST_COUNTED),
                meaning: "NACKs at once from one address; 0 only while -rl-ip-rate is 0.",
                consequence: "Listeners that lose a burst ask in a burst.",
            })?,
            chain_rate: rows.read_with_aliases(
                Row {
                    flag: "rl-chain-rate",
                    env: "RL_CHAIN_RATE",
                    default: "500",
                    accepts: whole(0..=MOST_COUNTED),
                    meaning: "NACKs from one address for one flow per -rl-chain-window; 0: no limit.",
                    consequence: "Over it: silence, or THROTTLED. HashKey 0 is exempt.",
                },
                &[Alias { flag: "rl-sender-rate", env: "RL_SENDER_RATE" }],
            )?,
            chain_window: rows.read_with_aliases(
                Row {
                    flag: "rl-chain-window",
                    env: "RL_CHAIN_WINDOW",
                    default: "1m",
                    accepts: time(MILLISECOND, HOUR),
                    meaning: "That window.",
                    consequence: "It slides.",
                },
                &[Alias { flag: "rl-sender-window", env: "RL_SENDER_WINDOW" }],
            )?,
            sequence_max: rows.read(Row {
                flag: "rl-sequence-max",
                env: "RL_SEQUENCE_MAX",
                default: "100",
                accepts: whole(0..=MOST_COUNTED),
                meaning: "Answers for one frame per -rl-sequence-window; 0: no limit.",
                consequence: "Over it: silence, or THROTTLED.",
            })?,
            sequence_window: rows.read(Row {
                flag: "rl-sequence-window",
                env: "RL_SEQUENCE_WINDOW",
                default: "1m",
                accepts: time(MILLISECOND, HOUR),
                meaning: "That window.",
                consequence: "It slides.",
            })?,
            group_rate: rows.read(Row {
                flag: "rl-group-rate",
                env: "RL_GROUP_RATE",
                default: "200",
                accepts: whole(0..=HIGHEST_RATE),
                meaning: "Hits per second from one address in one group; 0: no limit.",
                consequence: "Over it: silence, or THROTTLED.",
            })?,
            group_burst: rows.read(Row {
                flag: "rl-group-burst",
                env: "RL_GROUP_BURST",
                default: "50",
                accepts: whole(0..=MOST_COUNTED),
                meaning: "Hits at once from one address in one group; 0 only while -rl-group-rate is 0.",
                consequence: "Listeners that lose a burst ask in a burst.",
            })?,
            throttle_response: rows.read(Row {
                flag: "rl-throttle-response",
                env: "RL_THROTTLE_RESPONSE",
                default: "false",
                accepts: switch(),
                meaning: "Say THROTTLED instead of nothing.",
                consequence: "Listeners hold back for the time it tells; never said for the limit of an address.",
            })?,
            table_entries: rows.read(Row {
                flag: "limit-table-entries",
                env: "LIMIT_TABLE_ENTRIES",
                default: "65536",
                accepts: whole(1024..=1 << 24),
                meaning: "Entries of each limit table.",
                consequence: "Memory is taken at start; when full, the entry that has used least of its limit is forgotten.",
            })?,
        })
    }
}
