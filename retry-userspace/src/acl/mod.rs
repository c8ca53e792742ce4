//! Who may ask, and whose frames are stored: the lists of the settings and of `-acl-file`, in tables that the kernel program reads too.
//!
//! * `rules`: the lists, and how a file says them
//! * `table`: writes them where [`retry_common::acl`] looks them up
//! * [`follow`]: reads the file again
//!
//! There are two tables. A new list is written to the one that is not in force, and one store of a word changes them: no datagram
//! meets half of a list, and none meets no list.

mod follow;
mod rules;
mod table;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use retry_common::acl::{self, Head};
use retry_common::counter::Counter;

use table::InForce;

pub(crate) use follow::{follow, load};
pub(crate) use rules::Source;
pub use rules::{Rules, RulesError};
pub use table::{Size, Tables};

/// How long a table that was in force is left as it is, if [`Acl::resting`] says nothing else: longer than any datagram is looked
/// at.
const REST: Duration = Duration::from_secs(1);

/// The lists in force. Threads share it.
#[derive(Debug)]
pub struct Acl {
    tables: Tables,
    hop_limit_min: u8,
    rest: Duration,
    /// Where the lists come from.
    source: Mutex<Source>,
    /// The table to write to next, and when it was last in force.
    next: Mutex<(u32, Option<Instant>)>,
}

impl Acl {
    /// Over these tables, of which none is in force: every source may ask.
    #[must_use]
    pub fn new(tables: Tables, hop_limit_min: u8) -> Self {
        Self { tables, hop_limit_min, rest: REST, source: Mutex::default(), next: Mutex::new((0, None)) }
    }

    /// The same where a table that was in force is left as it is for `rest`.
    #[must_use]
    pub fn resting(self, rest: Duration) -> Self {
        Self { rest, ..self }
    }

    /// Where the lists come from, as of now.
    pub(crate) fn source(&self) -> Source {
        self.source.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// They come from there from now on: [`load`] puts them in force.
    pub(crate) fn set_source(&self, source: Source) {
        *self.source.lock().unwrap_or_else(PoisonError::into_inner) = source;
    }

    /// Whether a datagram to the NACK port is looked at, as the kernel program asks; true when its source is served as a peer. A
    /// hop limit that the host does not tell is the lowest.
    ///
    /// # Errors
    /// The counter of one that is dropped unread.
    pub fn admit(&self, source: Ipv6Addr, hop_limit: Option<u8>) -> Result<bool, Counter> {
        self.look(|table| acl::admit(table, source.to_bits(), hop_limit.unwrap_or(0), self.hop_limit_min))
    }

    /// Whether frames of this source are stored, as the kernel program asks.
    #[must_use]
    pub fn publishes(&self, source: Ipv6Addr) -> bool {
        self.look(|table| acl::publishes(table, source.to_bits()))
    }

    /// True when a list names this source: -acl-allow or -proxied-from.
    #[must_use]
    pub fn names(&self, source: Ipv6Addr) -> bool {
        self.look(|table| table.is_some_and(|table| acl::names(table, source.to_bits())))
    }

    /// What the table in force says.
    fn look<T>(&self, ask: impl Fn(Option<&InForce<'_>>) -> T) -> T {
        loop {
            let word = self.tables.word().load(Ordering::Acquire);
            let answer = ask(self.tables.in_force(word).as_ref());
            // The lists may have changed twice meanwhile.
            if self.tables.word().load(Ordering::Acquire) == word {
                return answer;
            }
        }
    }

    /// True when no datagram of this source is to be believed, whatever it is. An IPv4 address is looked up as `::ffff:a.b.c.d`.
    #[must_use]
    pub fn refuses(&self, source: IpAddr) -> bool {
        let source = match source {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        self.admit(source, Some(u8::MAX)).is_err()
    }

    /// True when every source that is looked at stands on an allow list.
    #[must_use]
    pub fn has_allow_list(&self) -> bool {
        let table = self.tables.in_force(self.tables.word().load(Ordering::Acquire));
        table.is_some_and(|table| acl::has_allow_list(acl::Table::head(&table)))
    }

    /// Puts other lists in force, all of them at once. Waits for up to a second when the change before the last is
    /// younger than that.
    ///
    /// # Errors
    /// They have no place in the tables; those before stay in force.
    pub fn replace(&self, rules: &Rules) -> Result<(), RulesError> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let (number, rested) = *next;
        if rules.is_empty() {
            self.tables.word().store(0, Ordering::Release);
        } else {
            if let Some(rested) = rested {
                thread::sleep(self.rest.saturating_sub(rested.elapsed()));
            }
            let head: Head = self.tables.write(number, rules)?;
            self.tables.put_head(number, &head);
            self.tables.word().store(u64::from(number) + 1, Ordering::Release);
        }
        // Also where the lists are empty: the table before may still be looked at.
        *next = (number ^ 1, Some(Instant::now()));
        Ok(())
    }
}
