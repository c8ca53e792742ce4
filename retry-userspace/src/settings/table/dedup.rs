//! How instances keep from sending the same repair.

use std::time::Duration;

use crate::settings::accepts::{YEAR, ZERO, any, one_of, time};
use crate::settings::rows::{Read, Row, Rows};
use crate::settings::values;

/// How instances keep from sending the same repair.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DedupMode {
    /// They tell each other afterwards.
    Eventual,
    /// They claim a repair before.
    Strict,
}

/// How instances keep out of each other's way; needs [`Redis::nodes`](crate::settings::Redis::nodes).
#[derive(Clone, Debug)]
pub struct Dedup {
    /// Life of a claim; zero is no claims.
    pub window: Duration,
    /// Before or afterwards. Strict takes multicast out of XDP.
    pub mode: DedupMode,
    /// How long another's claim silences us, never longer than the window; zero is the whole window.
    pub repeat_after: Duration,
}

impl Dedup {
    pub(in crate::settings) fn read(rows: &mut Rows<'_>) -> Read<Self> {
        rows.group("Dedup between instances");
        let window = rows.read(Row {
            flag: "dedup-window",
            env: "DEDUP_WINDOW",
            default: "60s",
            accepts: time(ZERO, YEAR),
            meaning: "How long a claim of a multicast repair is kept in Redis; 0: no claims.",
            consequence: "No effect without -redis-addr.",
        })?;
        let mode = rows.read(Row {
            flag: "dedup-mode",
            env: "DEDUP_MODE",
            default: "eventual",
            accepts: one_of(&[("eventual", DedupMode::Eventual), ("strict", DedupMode::Strict)]),
            meaning: "eventual: instances tell each other of repairs. strict: they claim a repair before they send it.",
            consequence: "strict sends no frame twice, but takes multicast repairs out of XDP.",
        })?;
        let repeat_after = rows.read(Row {
            flag: "dedup-repeat-after",
            env: "DEDUP_REPEAT_AFTER",
            default: "1s",
            accepts: any("0 to -dedup-window", |text| values::duration_in(text, ZERO, YEAR)),
            meaning: "How long another instance's claim silences our multicast; 0: the whole window.",
            consequence: "A listener that asks again after it has lost the repair too, and gets one. No effect without -redis-addr.",
        })?;
        // The Go program has no such setting: a short window that it takes must not fail for our default.
        let gives_way = !rows.is_set("dedup-repeat-after");
        Ok(Self { window, mode, repeat_after: if gives_way { repeat_after.min(window) } else { repeat_after } })
    }
}
