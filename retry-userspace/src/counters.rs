//! The counters of the daemon's own path, and frames stored by their source.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::offset_of;
use std::net::Ipv6Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use retry_common::abi::{SourceCount, SourceTable};
use retry_common::counter::{Counter, Counters};

use crate::framelog::Memory;

/// One word for each [`Counter`].
#[derive(Debug)]
pub struct UserCounters(Words);

/// Where the words stand.
#[derive(Debug)]
enum Words {
    /// In this process.
    Own(Vec<AtomicU64>),
    /// In a map that outlives it, in the order of [`Counter::ALL`].
    Pinned(Memory),
}

impl Default for UserCounters {
    fn default() -> Self {
        Self(Words::Own(Counter::ALL.iter().map(|_| AtomicU64::new(0)).collect()))
    }
}

impl UserCounters {
    /// Counts on in `words`, one for each [`Counter`].
    pub(crate) const fn over(words: Memory) -> Self {
        Self(Words::Pinned(words))
    }

    fn place(&self, counter: Counter) -> Option<&AtomicU64> {
        match &self.0 {
            Words::Own(words) => words.get(counter as usize),
            Words::Pinned(words) => Some(words.word(counter as usize * size_of::<u64>())),
        }
    }

    /// Counts one.
    pub fn one(&self, counter: Counter) {
        self.add(counter, 1);
    }

    /// Counts `many`.
    pub fn add(&self, counter: Counter, many: u64) {
        if let Some(place) = self.place(counter) {
            place.fetch_add(many, Ordering::Relaxed);
        }
    }

    /// Adds what one thread has counted by itself: one atomic step for many.
    pub fn add_all(&self, tally: &Counters) {
        for counter in Counter::ALL {
            match tally.get(*counter) {
                0 => {}
                many => self.add(*counter, many),
            }
        }
    }

    /// All of them at one time, or nearly.
    pub fn snapshot(&self) -> Counters {
        let mut block = Counters::default();
        for counter in Counter::ALL {
            *block.get_mut(*counter) = self.place(*counter).map_or(0, |place| place.load(Ordering::Relaxed));
        }
        block
    }
}

/// Sources that have a series of their own at most. Anyone may be a source, and each series is kept for good by what scrapes it.
pub(crate) const MOST_SOURCES: usize = 64;

/// Frames stored, by their source.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct StoredBySource {
    /// Frames of each source.
    pub sources: BTreeMap<Ipv6Addr, u64>,
    /// Frames of further sources, and of sources that are not known.
    pub other: u64,
}

impl StoredBySource {
    /// Adds frames of a source.
    pub fn add(&mut self, source: Ipv6Addr, frames: u64) {
        *self.sources.entry(source).or_default() += frames;
    }
}

/// Frames that the daemon stored, by their source, and which sources have a series. A source that has one keeps it.
#[derive(Debug, Default)]
pub(crate) struct SourceCounts {
    stored: Mutex<StoredBySource>,
    /// A table that outlives this daemon.
    kept: Option<KeptSources>,
}

/// The sources with a series, in a table that outlives the daemon.
#[derive(Debug)]
struct KeptSources {
    table: Memory,
    /// The entry of each.
    places: Mutex<BTreeMap<Ipv6Addr, usize>>,
}

impl KeptSources {
    /// The word behind the entries, of all other sources.
    const OTHER: usize = offset_of!(SourceTable, other);

    /// Writes how many frames of a source there are by now.
    fn keep(&self, source: Ipv6Addr, frames: u64) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let next = places.len();
        let place = *places.entry(source).or_insert(next) * size_of::<SourceCount>();
        if place == next * size_of::<SourceCount>() {
            self.table.write(place, source.octets());
        }
        self.table.word(place + offset_of!(SourceCount, frames)).store(frames, Ordering::Release);
    }
}

impl SourceCounts {
    /// Goes on from the counts in `table`, and keeps them there: [`MOST_SOURCES`] entries of a [`SourceTable`].
    pub(crate) fn over(table: Memory) -> Self {
        let (mut stored, mut places) = (StoredBySource::default(), BTreeMap::new());
        for place in 0..MOST_SOURCES {
            let SourceCount { address, frames } = table.read(place * size_of::<SourceCount>());
            let address = Ipv6Addr::from(address);
            // A source that has a series and no frames yet keeps it too.
            if address.is_unspecified() {
                break;
            }
            stored.add(address, frames);
            places.insert(address, place);
        }
        stored.other = table.word(KeptSources::OTHER).load(Ordering::Acquire);
        Self { stored: Mutex::new(stored), kept: Some(KeptSources { table, places: Mutex::new(places) }) }
    }

    fn stored(&self) -> MutexGuard<'_, StoredBySource> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives these sources a series, at 0 until a frame of theirs is stored, as long as there are fewer than [`MOST_SOURCES`].
    pub(crate) fn name(&self, sources: &BTreeSet<Ipv6Addr>) {
        self.place_all(&mut self.stored(), sources);
    }

    /// Gives those of these sources a series that have none, as long as there are fewer than [`MOST_SOURCES`].
    fn place_all<'a>(&self, stored: &mut StoredBySource, sources: impl IntoIterator<Item = &'a Ipv6Addr>) {
        for source in sources {
            if stored.sources.contains_key(source) || stored.sources.len() >= MOST_SOURCES {
                continue;
            }
            stored.sources.insert(*source, 0);
            if let Some(kept) = &self.kept {
                kept.keep(*source, 0);
            }
        }
    }

    /// Counts frames that one thread has stored, a source and a number each; `None` is a source that is not known.
    pub(crate) fn add_all(&self, tally: &[(Option<Ipv6Addr>, u64)]) {
        if tally.is_empty() {
            return;
        }
        let mut stored = self.stored();
        for (source, frames) in tally {
            *match source {
                Some(source) => stored.place(*source),
                None => &mut stored.other,
            } += frames;
        }
        if let Some(kept) = &self.kept {
            for source in tally.iter().filter_map(|(source, _)| *source) {
                if let Some(frames) = stored.sources.get(&source) {
                    kept.keep(source, *frames);
                }
            }
            kept.table.word(KeptSources::OTHER).store(stored.other, Ordering::Release);
        }
    }

    /// The frames that the daemon stored and those that the kernel stored, of at most [`MOST_SOURCES`] sources and the others.
    pub(crate) fn with_kernel(&self, kernel: &StoredBySource) -> StoredBySource {
        let mut stored = self.stored();
        self.place_all(&mut stored, kernel.sources.keys());
        let mut sum = stored.clone();
        drop(stored);
        for (source, frames) in &kernel.sources {
            *sum.place(*source) += frames;
        }
        sum.other += kernel.other;
        sum
    }
}

impl StoredBySource {
    /// Where frames of a source are counted.
    fn place(&mut self, source: Ipv6Addr) -> &mut u64 {
        if self.sources.len() >= MOST_SOURCES && !self.sources.contains_key(&source) {
            return &mut self.other;
        }
        self.sources.entry(source).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counter_has_its_own_word() {
        let counters = UserCounters::default();
        for (i, counter) in (1u64..).zip(Counter::ALL) {
            counters.add(*counter, i);
        }
        let block = counters.snapshot();
        for (i, counter) in (1u64..).zip(Counter::ALL) {
            assert_eq!(block.get(*counter), i);
        }
    }

    fn source(number: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, number)
    }

    /// Counts that outlive their daemon: those of a source that has a series, and of the others.
    #[test]
    fn kept_sources_are_gone_on_with() {
        let pages = || Memory::plain(size_of::<SourceTable>()).expect("memory");
        let counts = SourceCounts::over(pages());
        counts.name(&BTreeSet::from([source(9)]));
        counts.add_all(&[(Some(source(2)), 5), (None, 3), (Some(source(1)), 1)]);
        counts.add_all(&[(Some(source(2)), 2)]);
        let first = counts.with_kernel(&StoredBySource::default());
        let kept = counts.kept.expect("kept").table;
        let next = SourceCounts::over(kept);
        next.name(&BTreeSet::from([source(9)]));
        assert_eq!(next.with_kernel(&StoredBySource::default()), first);
        next.add_all(&[(Some(source(1)), 1), (Some(source(3)), 4)]);
        let last = SourceCounts::over(next.kept.expect("kept").table).with_kernel(&StoredBySource::default());
        let wanted = [(source(1), 2), (source(2), 7), (source(3), 4), (source(9), 0)];
        assert_eq!((last.sources, last.other), (wanted.into(), 3));
    }

    /// Which sources have a series is kept too, also of those whose frames the kernel stores: the next daemon hears of them in another order.
    #[test]
    fn kept_sources_keep_their_series() {
        let counts = SourceCounts::over(Memory::plain(size_of::<SourceTable>()).expect("memory"));
        let mut kernel = StoredBySource::default();
        counts.name(&BTreeSet::from([source(900)]));
        for number in (0..100).rev() {
            kernel.add(source(number), 1);
            counts.with_kernel(&kernel);
        }
        let before = counts.with_kernel(&kernel);
        assert!(before.sources.contains_key(&source(99)) && !before.sources.contains_key(&source(1)), "{before:?}");
        let next = SourceCounts::over(counts.kept.expect("kept").table);
        assert_eq!(next.with_kernel(&kernel), before);
    }

    /// However many sources there are: the first keep their series, the frames of the others are in one, and none is lost.
    #[test]
    fn sources_are_bounded_and_keep_their_series() {
        let counts = SourceCounts::default();
        counts.name(&BTreeSet::from([source(1), source(2)]));
        assert_eq!(counts.with_kernel(&StoredBySource::default()).sources.len(), 2, "they stand at 0");
        let mut kernel = StoredBySource { other: 5, ..StoredBySource::default() };
        for number in 0..1_000 {
            counts.add_all(&[(Some(source(number)), 1), (None, 1)]);
            kernel.add(source(number), 2);
        }
        let stored = counts.with_kernel(&kernel);
        assert_eq!(stored.sources.len(), MOST_SOURCES);
        assert_eq!((stored.sources.get(&source(1)), stored.sources.get(&source(63))), (Some(&3), Some(&3)));
        assert_eq!(stored.sources.values().sum::<u64>() + stored.other, 1_000 + 1_000 + 2_000 + 5);
        assert_eq!(counts.with_kernel(&kernel), stored, "the kernel's frames are not counted twice");
    }
}
