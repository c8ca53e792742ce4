//! The frame log at the start: a new one, or that of an earlier daemon, repaired or read over.

use std::sync::Arc;
use std::time::{Duration, Instant};

use retry_common::counter::Counter;

use crate::counters::UserCounters;
use crate::datapath::Found;
use crate::framelog::{self, Log, Pages, Unusable, Writer};
use crate::ingress::fill::Fill;
use crate::store::Store;

/// Frames that may wait for the store while more are followed: half of what its queue holds.
const STORE_AHEAD: usize = 32_768;
/// How long a start waits for the store, which connects meanwhile, and between two looks.
const STORE_PATIENCE: Duration = Duration::from_secs(2);
const STORE_PAUSE: Duration = Duration::from_millis(5);

/// A frame log that is open.
pub(super) struct Opened {
    pub(super) writer: Writer,
    pub(super) log: Log,
    pub(super) start: StartMode,
    /// One of other sizes, whose frames are to be read over.
    pub(super) old: Option<OldLog>,
}

/// The log of an earlier daemon, of other sizes. The kernel program of that daemon stores in it until this one goes live.
pub(super) struct OldLog {
    writer: Writer,
    /// How far its lanes have been copied.
    copied: [u64; 2],
}

impl OldLog {
    /// Reads over what it holds and was not read over before, and counts and tells of what the kernel stored there.
    pub(super) fn read_over(&mut self, fill: &Fill) -> u64 {
        fill.read_over(&mut self.writer, &mut self.copied)
    }
}

/// What the log held at the start.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum StartMode {
    /// Nothing, for there was no earlier daemon.
    #[default]
    Fresh,
    /// Nothing, for what an earlier daemon left does not fit this one.
    Unfit,
    /// The frames of an earlier daemon.
    Adopted,
    /// The frames of an earlier daemon whose log has other sizes.
    ReadOver,
}

impl StartMode {
    /// Its word in `bre_start_mode`.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Unfit => "unfit",
            Self::Adopted => "adopted",
            Self::ReadOver => "read_over",
        }
    }

    /// Counts a start beside an earlier daemon's pins.
    pub(super) fn count(self, counters: &UserCounters) {
        match self {
            Self::Fresh => {}
            Self::Unfit => counters.one(Counter::HandoversUnfit),
            Self::Adopted => counters.one(Counter::HandoversAdopted),
            Self::ReadOver => counters.one(Counter::HandoversReadOver),
        }
    }
}

/// Opens the log in `pages`.
///
/// # Errors
/// The log that an earlier daemon left in them is none.
pub(super) fn open_log(pages: &Arc<Pages>, found: Found, hash_seed: u64, max_keys: u64) -> Result<Opened, Unusable> {
    let (start, old) = match found {
        Found::Nothing => (StartMode::Fresh, None),
        Found::Unfit => (StartMode::Unfit, None),
        Found::Log => {
            let (writer, log) = take_over(pages, hash_seed, max_keys)?;
            return Ok(Opened { writer, log, start: StartMode::Adopted, old: None });
        }
        Found::OldLog(old) => {
            // It was bounded by its own daemon; the new log has this one's bound.
            let (writer, _) = take_over(&Arc::from(old), hash_seed, 0)?;
            (StartMode::ReadOver, Some(OldLog { writer, copied: [0; 2] }))
        }
    };
    let (writer, log) = framelog::open_anywhere(Arc::clone(pages), hash_seed, max_keys);
    Ok(Opened { writer, log, start, old })
}

fn take_over(pages: &Arc<Pages>, hash_seed: u64, max_keys: u64) -> Result<(Writer, Log), Unusable> {
    let (writer, log, adopted) = framelog::adopt(Arc::clone(pages), hash_seed, max_keys)?;
    tracing::info!(
        frames = adopted.frames,
        unfollowed = adopted.unfollowed,
        holes = adopted.holes,
        entered = adopted.entered,
        stale_entries = adopted.stale_entries,
        "the frames of an earlier daemon are taken over"
    );
    Ok((writer, log))
}

/// Counts and tells of what the kernel stored while no daemon ran, no faster than the store takes it, within bounds.
pub(super) fn follow(fill: &Fill, store: Option<&Store>) {
    let deadline = Instant::now() + STORE_PATIENCE;
    let is_behind = || store.is_some_and(|store| store.status().queued > STORE_AHEAD);
    while fill.follow() {
        while is_behind() && Instant::now() < deadline {
            std::thread::sleep(STORE_PAUSE);
        }
    }
}
