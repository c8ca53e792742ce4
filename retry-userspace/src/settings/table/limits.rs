//! Who may ask how often.

use std::time::Duration;

use retry_common::limits::{ByteBudget, Rate, Window};

use crate::settings::accepts::{Accepts, MILLISECOND, YEAR, any, switch, time, whole};
use crate::settings::rows::{Alias, Read, Row, Rows};
use crate::settings::values;

/// Who may ask how often; a rate or count of 0 is off.
#[derive(Clone, Debug)]
pub struct Limits {
    /// NACKs per second from one address. Over it: silence.
    pub ip_rate: Rate,
    /// NACKs at once from one address. Above 0 while the rate is.
    pub ip_burst: u32,
    /// NACKs per [`Limits::chain_window`] from one address for one flow. Over it: silence or THROTTLED.
    pub chain_rate: u32,
    /// Its window, so long that the events in it are a whole number.
    pub chain_window: Duration,
    /// Answers per [`Limits::sequence_window`] for one frame. Over it: silence or THROTTLED.
    pub sequence_max: u32,
    /// Its window, so long that it has no more events than can be counted.
    pub sequence_window: Duration,
    /// Hits per second from one address in one group. Over it: silence or THROTTLED.
    pub group_rate: Rate,
    /// Hits at once from one address in one group. Above 0 while the rate is.
    pub group_burst: u32,
    /// Bytes per second to one address in answer to its NACKs; 0: no budget.
    pub source_bytes: u64,
    /// Bytes per second that leave in answer to NACKs; 0: no budget.
    pub total_bytes: u64,
    /// An address that has not shown that it hears us gets at most so many times the bytes of its NACK; 0: that is not asked.
    pub unproven_factor: u32,
    /// Say THROTTLED; never for the limit of an address.
    pub throttle_response: bool,
    /// Most known listeners; 0: none.
    pub known_listeners: u32,
    /// Entries of each limit table. When full, the entry that has used least of its limit goes.
    pub table_entries: u32,
}

impl Limits {
    pub(in crate::settings) fn read(rows: &mut Rows<'_>) -> Read<Self> {
        rows.group("Limits");
        let ip_rate = rows.read(Row {
            flag: "rl-ip-rate",
            env: "RL_IP_RATE",
            default: "100",
            accepts: rate(),
            meaning: "NACKs per second from one address, also a fraction; 0: no limit.",
            consequence: "Over it: silence.",
        })?;
        let ip_burst = rows.read(Row {
            flag: "rl-ip-burst",
            env: "RL_IP_BURST",
            default: "10",
            accepts: whole(0..=u32::MAX),
            meaning: "NACKs at once from one address; 0 only while -rl-ip-rate is 0.",
            consequence: "Listeners that lose a burst ask in a burst.",
        })?;
        let chain_events = rows.read_with_aliases(
            Row {
                flag: "rl-chain-rate",
                env: "RL_CHAIN_RATE",
                default: "500",
                accepts: events(),
                meaning: "NACKs from one address for one flow per -rl-chain-window, also a fraction; 0: no limit.",
                consequence: "Over it: silence, or THROTTLED. HashKey 0 is exempt.",
            },
            &[Alias { flag: "rl-sender-rate", env: "RL_SENDER_RATE" }],
        )?;
        let chain_window = rows.read_with_aliases(
            Row {
                flag: "rl-chain-window",
                env: "RL_CHAIN_WINDOW",
                default: "1m",
                accepts: time(MILLISECOND, YEAR),
                meaning: "That window.",
                consequence: "Wherever it begins, no more pass; what passed counts for the window and up to a part of it longer.",
            },
            &[Alias { flag: "rl-sender-window", env: "RL_SENDER_WINDOW" }],
        )?;
        let sequence_events = rows.read(Row {
            flag: "rl-sequence-max",
            env: "RL_SEQUENCE_MAX",
            default: "100",
            accepts: events(),
            meaning: "Answers for one frame per -rl-sequence-window, also a fraction; 0: no limit.",
            consequence: "Over it: silence, or THROTTLED.",
        })?;
        let sequence_window = rows.read(Row {
            flag: "rl-sequence-window",
            env: "RL_SEQUENCE_WINDOW",
            default: "1m",
            accepts: time(MILLISECOND, YEAR),
            meaning: "That window.",
            consequence: "Wherever it begins, no more pass; what passed counts for the window and up to a part of it longer.",
        })?;
        let (chain_rate, chain_window) = countable(chain_events, chain_window);
        let (sequence_max, sequence_window) = countable(sequence_events, sequence_window);
        Ok(Self {
            ip_rate,
            ip_burst,
            chain_rate,
            chain_window,
            sequence_max,
            sequence_window,
            group_rate: rows.read(Row {
                flag: "rl-group-rate",
                env: "RL_GROUP_RATE",
                default: "200",
                accepts: rate(),
                meaning: "Hits per second from one address in one group, also a fraction; 0: no limit.",
                consequence: "Over it: silence, or THROTTLED.",
            })?,
            group_burst: rows.read(Row {
                flag: "rl-group-burst",
                env: "RL_GROUP_BURST",
                default: "50",
                accepts: whole(0..=u32::MAX),
                meaning: "Hits at once from one address in one group; 0 only while -rl-group-rate is 0.",
                consequence: "Listeners that lose a burst ask in a burst.",
            })?,
            source_bytes: rows.read(Row {
                flag: "rl-source-bytes",
                env: "RL_SOURCE_BYTES",
                default: "0",
                accepts: budget(),
                meaning: "Bytes per second to one address: unicast copies and answers, as IPv6 packets with their headers; 0: no budget.",
                consequence: "Over it: silence. No second has more, wherever it begins; what is longer than the part that may leave at once (half, at most 128 KiB, at least an eighth) never leaves. From 0 it needs a restart.",
            })?,
            total_bytes: rows.read(Row {
                flag: "rl-total-bytes",
                env: "RL_TOTAL_BYTES",
                default: "0",
                accepts: budget(),
                meaning: "Bytes per second in answer to NACKs: those of -rl-source-bytes to all, and multicast repairs once per egress interface; 0: no budget.",
                consequence: "Over it: silence. Addresses that have shown that they hear us come first: others have a quarter of it at once, so at least 4 times the longest frame, times the egress interfaces, is wanted.",
            })?,
            unproven_factor: rows.read(Row {
                flag: "unproven-factor",
                env: "UNPROVEN_FACTOR",
                default: "0",
                accepts: whole(0..=1_000),
                meaning: "Most bytes to an address that has not shown that it hears us, as a multiple of those of its NACK (112); 0: no bound. RFC 9000 has 3.",
                consequence: "A longer copy is left out: a THROTTLED, or silence. Known listeners and sources on the allow list have shown it.",
            })?,
            throttle_response: rows.read(Row {
                flag: "rl-throttle-response",
                env: "RL_THROTTLE_RESPONSE",
                default: "false",
                accepts: switch(),
                meaning: "Say THROTTLED instead of nothing.",
                consequence: "Listeners hold back for the time it tells; never said for the limit of an address.",
            })?,
            known_listeners: rows.read(Row {
                flag: "known-listeners",
                env: "KNOWN_LISTENERS",
                default: "16384",
                accepts: whole(0..=KNOWN_LISTENERS),
                meaning: "Most known listeners: addresses that asked again later, within -rl-ip-rate; 0: none.",
                consequence: "They are served by their own limits when others have used up -rl-sequence-max of a frame. With -rl-ip-rate 0 none becomes known.",
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

/// A budget of bytes per second.
fn budget() -> Accepts<u64> {
    const ACCEPTED: &str = "0, or 1024 to 100000000000";
    any(ACCEPTED, |text| {
        let accepted = |bytes: &u64| *bytes == 0 || (ByteBudget::LEAST..=ByteBudget::MOST).contains(bytes);
        values::number(text, 0..=u64::MAX).ok().filter(accepted).ok_or_else(|| format!("{ACCEPTED}, is accepted"))
    })
}

fn rate() -> Accepts<Rate> {
    any("0, or 0.000001 to 1000000000", values::rate)
}

/// Events in a window, in millionths.
fn events() -> Accepts<u64> {
    any("0, or 0.000001 to 1000000000", |text| {
        let events = values::millionths(text).filter(|millionths| *millionths <= 1_000_000_000 * MILLION);
        events.ok_or_else(|| "0, or a number from 0.000001 to 1000000000, is accepted".to_owned())
    })
}

#[expect(clippy::cast_possible_truncation, reason = "65,536")]
const KNOWN_LISTENERS: u32 = retry_common::abi::KNOWN_LISTENERS as u32;
const MILLION: u64 = 1_000_000;

/// A limit of whole events, as many as can be counted, in a window that is as much longer or shorter than `window`: 0.5 per
/// minute is 1 per two minutes.
fn countable(millionths: u64, window: Duration) -> (u32, Duration) {
    if millionths == 0 {
        return (0, window);
    }
    let events = (millionths / MILLION).clamp(1, u64::from(Window::MAX));
    let nanoseconds = window.as_nanos() * u128::from(events * MILLION) / u128::from(millionths);
    let window = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
    (u32::try_from(events).unwrap_or(Window::MAX), window)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_cannot_be_counted_gets_another_window() {
        let minute = Duration::from_secs(60);
        for (millionths, events, window) in [
            (0, 0, minute),
            (500 * MILLION, 500, minute),
            (1_000_000 * MILLION, 1_000_000, minute),
            (500_000, 1, Duration::from_secs(120)),
            (1_500_000, 1, Duration::from_secs(40)),
            (2_500_000, 2, Duration::from_secs(48)),
            (2_000_000 * MILLION, 1_000_000, Duration::from_secs(30)),
            (1, 1, Duration::from_secs(60_000_000)),
        ] {
            assert_eq!(countable(millionths, minute), (events, window), "{millionths}");
        }
        assert_eq!(countable(1, Duration::from_secs(3600)).1, Duration::from_secs(3_600_000_000));
    }
}
