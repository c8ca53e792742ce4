//! Who is known: listeners that asked before, at a pace within their limit.
//!
//! The window of a frame is shared by all who ask for it, so strangers with forged addresses could use it up for everyone. A
//! known listener is served all the same, by the limits of its own address (step 3 of docs/nack-decision.md). A forged address
//! mostly comes once. So who asks again in a later second, and was admitted both times, is known from then on. The tables of
//! the address limit tell it: a second look finds the same key with another state. The data path does nothing for it.
//!
//! A flood makes no listener forgotten: a known listener gives way to another only when it has not asked for [`KEPT`]. And while
//! more addresses come than a table has room for, no new listener becomes known.

use std::collections::{HashMap, HashSet};
use std::net::Ipv6Addr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use retry_common::abi::{AddressKey, LimitWay};
use retry_common::limits::table::{WAYS, address_hash, tag};

use super::table::LimitTable;

/// How long a listener stays known that does not ask, when others wait for its place.
const KEPT: Duration = Duration::from_secs(600);
/// Most listeners that become known in one review: who forges addresses fills the table no faster.
const MOST_AT_ONCE: usize = 256;
/// Buckets that one look compares: 4 MiB of a table.
const SECTION: usize = 32_768;

/// The known listeners, as the threads of the socket path see them.
#[derive(Debug, Default)]
pub(crate) struct KnownListeners {
    /// Locked for writing while one comes or goes, and for no look at a table.
    listeners: RwLock<HashSet<[u8; 16]>>,
}

impl KnownListeners {
    /// True when this listener is known.
    pub(crate) fn is_known(&self, address: &[u8; 16]) -> bool {
        self.listeners.read().unwrap_or_else(PoisonError::into_inner).contains(address)
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.listeners.read().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// A change of who is known, for the kernel's table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Change {
    /// This listener is known from now on.
    Known(Ipv6Addr),
    /// This one no longer.
    Forgotten(Ipv6Addr),
}

/// Tells the kernel side of a change.
pub(crate) type OnChange = Box<dyn FnMut(Change) + Send>;

/// The limit of addresses, the kernel's or the daemon's own, for who looks who has asked.
#[derive(Clone, Debug)]
pub(crate) struct AddressTable {
    pub(super) table: Arc<LimitTable<AddressKey>>,
    pub(super) seed: u64,
}

impl AddressTable {
    /// Over `table`, whose hashes begin with `seed`.
    pub(crate) fn new(table: LimitTable<AddressKey>, seed: u64) -> Self {
        Self { table: Arc::new(table), seed }
    }
}

/// Finds out who becomes known.
pub(crate) struct Review {
    known: Arc<KnownListeners>,
    /// When each of them asked last, nanoseconds of the monotonic clock.
    seen: HashMap<[u8; 16], u64>,
    most: usize,
    looks: Vec<Look>,
    tell: Option<OnChange>,
}

impl Review {
    /// At most `most` known listeners, found in these tables. Those of `already` are known; `tell` is told of changes.
    pub(crate) fn new(
        most: u32,
        tables: Vec<AddressTable>,
        already: Vec<Ipv6Addr>,
        tell: Option<OnChange>,
        now_ns: u64,
    ) -> Self {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let looks = tables.into_iter().map(Look::new).collect();
        let mut review = Self { known: Arc::default(), seen: HashMap::new(), most, looks, tell };
        for address in already {
            if review.seen.len() < most {
                review.learn(address.octets(), now_ns);
            } else {
                review.told(Change::Forgotten(address));
            }
        }
        review
    }

    /// Who is known.
    pub(crate) fn known(&self) -> Arc<KnownListeners> {
        Arc::clone(&self.known)
    }

    /// Looks who has asked since the last review, about a second ago.
    pub(crate) fn review(&mut self, now_ns: u64) {
        if self.most == 0 {
            return;
        }
        let mut new = Vec::new();
        for look in &mut self.looks {
            let mut asked = Vec::new();
            let is_crowded = look.compare(|address| asked.push(address));
            for address in asked {
                match self.seen.get_mut(&address) {
                    Some(seen) => *seen = now_ns,
                    None if is_crowded || new.len() >= MOST_AT_ONCE => {}
                    None => new.push(address),
                }
            }
        }
        new.sort_unstable();
        new.dedup();
        self.enter(new, now_ns);
    }

    fn enter(&mut self, new: Vec<[u8; 16]>, now_ns: u64) {
        let over = (self.seen.len() + new.len()).saturating_sub(self.most);
        for address in self.oldest(over, now_ns) {
            self.seen.remove(&address);
            self.known.listeners.write().unwrap_or_else(PoisonError::into_inner).remove(&address);
            self.told(Change::Forgotten(Ipv6Addr::from(address)));
        }
        let room = self.most.saturating_sub(self.seen.len());
        for address in new.into_iter().take(room) {
            self.learn(address, now_ns);
            self.told(Change::Known(Ipv6Addr::from(address)));
        }
    }

    fn learn(&mut self, address: [u8; 16], now_ns: u64) {
        self.seen.insert(address, now_ns);
        self.known.listeners.write().unwrap_or_else(PoisonError::into_inner).insert(address);
    }

    /// Up to `count` of those that have not asked for [`KEPT`], the longest silent first.
    fn oldest(&self, count: usize, now_ns: u64) -> Vec<[u8; 16]> {
        if count == 0 {
            return Vec::new();
        }
        let kept_ns = u64::try_from(KEPT.as_nanos()).unwrap_or(u64::MAX);
        let silent = |seen: u64| now_ns.saturating_sub(seen) > kept_ns;
        let mut old: Vec<(u64, [u8; 16])> =
            self.seen.iter().filter(|(_, seen)| silent(**seen)).map(|(address, seen)| (*seen, *address)).collect();
        old.sort_unstable();
        old.into_iter().take(count).map(|(_, address)| address).collect()
    }

    fn told(&mut self, change: Change) {
        if let Some(tell) = &mut self.tell {
            tell(change);
        }
    }
}

/// A section of a table, as it was a look ago.
struct Look {
    of: AddressTable,
    /// The first bucket.
    first: usize,
    before: Vec<LimitWay>,
}

impl Look {
    fn new(of: AddressTable) -> Self {
        let mut look = Self { of, first: 0, before: Vec::new() };
        look.take();
        look
    }

    fn take(&mut self) {
        let table = &self.of.table;
        let last = (self.first + SECTION).min(table.buckets());
        self.before.clear();
        self.before.extend((self.first..last).flat_map(|bucket| (0..WAYS).map(move |way| table.way(bucket, way).0)));
    }

    /// Says who has been admitted since the last look, of those that had been before; then goes on to the next section. True
    /// when more addresses have come than the section has room for.
    fn compare(&mut self, mut asked: impl FnMut([u8; 16])) -> bool {
        let mut replaced = 0;
        for (place, before) in self.before.iter().enumerate() {
            let (now, key) = self.of.table.way(self.first + place / WAYS, place % WAYS);
            if before.tag == 0 {
                continue;
            }
            if now.tag != before.tag {
                replaced += 1;
            } else if now.state > before.state && tag(address_hash(&key.address, self.of.seed)) == now.tag {
                asked(key.address);
            }
        }
        let is_crowded = replaced * 4 > self.before.len();
        self.first += SECTION;
        if self.first >= self.of.table.buckets() {
            self.first = 0;
        }
        self.take();
        is_crowded
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use retry_common::limits::TokenBucket;

    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const START: u64 = 5_000 * SECOND;

    struct Site {
        table: AddressTable,
        review: Review,
        bucket: TokenBucket,
        told: Arc<Mutex<Vec<Change>>>,
        now_ns: u64,
    }

    impl Site {
        fn new(most: u32, entries: u32) -> Self {
            let table = AddressTable::new(LimitTable::plain(entries).expect("memory"), 7);
            let told = Arc::new(Mutex::new(Vec::new()));
            let heard = Arc::clone(&told);
            let tell: OnChange = Box::new(move |change| heard.lock().expect("no panic").push(change));
            let review = Review::new(most, vec![table.clone()], Vec::new(), Some(tell), START);
            Self { table, review, bucket: TokenBucket::new(10, 2), told, now_ns: START }
        }

        fn ask(&self, number: u64) -> bool {
            let address = address(number);
            let hash = address_hash(&address, self.table.seed);
            self.table.table.take_token(AddressKey { address }, hash, &self.bucket, self.now_ns)
        }

        /// A second passes, and who asked in it is looked at.
        fn second(&mut self) {
            self.now_ns += SECOND;
            self.review.review(self.now_ns);
        }

        fn knows(&self, number: u64) -> bool {
            self.review.known.is_known(&address(number))
        }
    }

    fn address(number: u64) -> [u8; 16] {
        (0xfd10_u128 << 112 | u128::from(number)).to_be_bytes()
    }

    #[test]
    fn who_asks_again_later_is_known() {
        let mut site = Site::new(10, 1_024);
        assert!(site.ask(1) && site.ask(1));
        site.second();
        assert!(!site.knows(1), "twice in one second is a burst");
        assert!(site.ask(2));
        site.second();
        assert!(site.ask(1));
        site.second();
        assert_eq!((site.knows(1), site.knows(2), site.review.known().count()), (true, false, 1));
        assert_eq!(*site.told.lock().expect("no panic"), [Change::Known(Ipv6Addr::from(address(1)))]);
    }

    #[test]
    fn who_is_over_its_limit_all_the_time_is_not_known() {
        let mut site = Site::new(10, 1_024);
        site.bucket = TokenBucket::new(retry_common::limits::Rate::every(3_600 * SECOND), 1);
        assert!(site.ask(1));
        for _ in 0..5 {
            site.second();
            assert!(!site.ask(1));
        }
        assert!(!site.knows(1));
    }

    #[test]
    fn a_flood_of_new_addresses_makes_none_known_and_none_forgotten() {
        let mut site = Site::new(100, 1_024);
        for _ in 0..3 {
            assert!(site.ask(1));
            site.second();
        }
        assert!(site.knows(1));
        for second in 0..20 {
            for number in 0..20_000 {
                site.ask(1_000 + second * 20_000 + number);
            }
            // Some come again.
            for number in 0..200 {
                site.ask(500 + number);
            }
            site.second();
        }
        assert_eq!((site.knows(1), site.review.known.count()), (true, 1));
    }

    #[test]
    fn the_longest_silent_gives_way_and_only_after_its_time() {
        let mut site = Site::new(2, 1_024);
        let ask_twice = |site: &mut Site, number: u64| {
            site.ask(number);
            site.second();
            site.ask(number);
            site.second();
        };
        ask_twice(&mut site, 1);
        ask_twice(&mut site, 2);
        ask_twice(&mut site, 3);
        assert_eq!([1, 2, 3].map(|number| site.knows(number)), [true, true, false]);
        site.now_ns += 700 * SECOND;
        // The second asks from time to time.
        ask_twice(&mut site, 2);
        ask_twice(&mut site, 3);
        assert_eq!([1, 2, 3].map(|number| site.knows(number)), [false, true, true]);
        let told = site.told.lock().expect("no panic");
        assert_eq!(told[2..], [Change::Forgotten(address(1).into()), Change::Known(address(3).into())]);
    }

    #[test]
    fn those_of_an_earlier_daemon_stay_as_far_as_there_is_room() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&told);
        let tell: OnChange = Box::new(move |change| heard.lock().expect("no panic").push(change));
        let already = [1, 2, 3].map(|number| Ipv6Addr::from(address(number))).to_vec();
        let review = Review::new(2, Vec::new(), already, Some(tell), START);
        assert_eq!(review.known.count(), 2);
        assert_eq!(*told.lock().expect("no panic"), [Change::Forgotten(address(3).into())]);
    }

    #[test]
    fn a_table_larger_than_a_section_is_looked_at_in_turns() {
        let mut site = Site::new(100, 4 * 65_536);
        assert!(site.table.table.buckets() >= 4 * SECTION);
        for _ in 0..20 {
            for number in 0..50 {
                site.ask(number);
            }
            site.second();
        }
        assert_eq!(site.review.known.count(), 50);
    }
}
