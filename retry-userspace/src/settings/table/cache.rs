//! How frames are kept.

use std::time::Duration;

use retry_common::wire::frame::Class;

use crate::settings::accepts::{Accepts, Bound, MILLISECOND, ZERO, any, time};
use crate::settings::rows::{Read, Row, Rows};
use crate::settings::values;

/// Where frames are kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Backend {
    /// In the frame log of this instance.
    Memory,
    /// There, and in Redis for all instances.
    Redis,
}

/// How frames are kept.
#[derive(Clone, Debug)]
pub struct Cache {
    /// Bytes of the ring of transactions and BEEF objects.
    pub memory: u64,
    /// Bytes of the ring of blocks, subtrees and anchors.
    pub memory_long: u64,
    /// Most frames held; 0: no bound but the rings.
    pub max_keys: u64,
    /// Where frames are kept. Redis needs [`Redis::nodes`](crate::settings::Redis::nodes).
    pub backend: Backend,
    /// How long the first frame of a key stays when another with other bytes comes; zero: the newest wins.
    pub replace_after: Duration,
    ttl: [Duration; Class::ALL.len()],
}

const NO_AEROSPIKE: &str = "this program has no client for Aerospike; redis is accepted in its place, for Redis, \
     Valkey and Dragonfly";

/// A record of the frame log counts its life in 32 bits of milliseconds.
const LONGEST_LIFE: Bound = (Duration::from_secs(1176 * 3600), "1176h");

impl Cache {
    pub(in crate::settings) fn read(rows: &mut Rows<'_>) -> Read<Self> {
        rows.group("Cache");
        let cache = Self {
            memory: rows.read(Row {
                flag: "cache-memory",
                env: "CACHE_MEMORY",
                default: "256m",
                accepts: ring_size(),
                meaning: "Memory of the ring of transactions and BEEF objects.",
                consequence: "Too small: frames go before their TTL; bre_cache_oldest_age_seconds shows it.",
            })?,
            memory_long: rows.read(Row {
                flag: "cache-memory-long",
                env: "CACHE_MEMORY_LONG",
                default: "64m",
                accepts: ring_size(),
                meaning: "Memory of the ring of blocks, subtrees and anchors.",
                consequence: "A burst of transactions cannot push them out.",
            })?,
            max_keys: rows.read(Row {
                flag: "cache-max-keys",
                env: "CACHE_MAX_KEYS",
                default: "0",
                accepts: any("a whole number", |text| {
                    // Below 0 is no bound either, as the field's program has it.
                    let keys = values::number(text, i64::MIN..=i64::MAX);
                    let keys = keys.map_err(|_| "a whole number is accepted".to_owned())?;
                    Ok(u64::try_from(keys).unwrap_or(0))
                }),
                meaning: "Most frames held; 0 or less: as many as the rings have room for.",
                consequence: "The oldest frames go first.",
            })?,
            ttl: Self::lives(rows)?,
            replace_after: rows.read(Row {
                flag: "replace-after",
                env: "REPLACE_AFTER",
                default: "0",
                accepts: time(ZERO, LONGEST_LIFE),
                meaning: "How long the first frame of a key stays when another with other bytes comes.",
                consequence: "0: the newest wins, as with the Go program. Above 0, a publisher that is started again within the lives of its frames gets its new ones kept only after a second, and only if it is recognised: see docs/security.md.",
            })?,
            backend: rows.read(Row {
                flag: "cache-backend",
                env: "CACHE_BACKEND",
                default: "memory",
                accepts: any("memory, redis", |text| match text {
                    "aerospike" => Err(NO_AEROSPIKE.to_owned()),
                    text => values::word(text, &[("memory", Backend::Memory), ("redis", Backend::Redis)]),
                }),
                meaning: "memory, or redis: frames are shared between instances.",
                consequence: "redis needs -redis-addr.",
            })?,
        };
        Self::unused(rows)?;
        Ok(cache)
    }

    /// Settings of the field's program that are accepted, so that its environment starts this one, and have no effect.
    fn unused(rows: &mut Rows<'_>) -> Read<()> {
        const CONSEQUENCE: &str = "No effect: -cache-backend aerospike is refused.";
        let words = || any("any text", |_| Ok(()));
        rows.read(Row {
            flag: "aerospike-hosts",
            env: "AEROSPIKE_HOSTS",
            default: "",
            accepts: words(),
            meaning: "Accepted and unused.",
            consequence: CONSEQUENCE,
        })?;
        rows.read(Row {
            flag: "aerospike-namespace",
            env: "AEROSPIKE_NAMESPACE",
            default: "",
            accepts: words(),
            meaning: "Accepted and unused.",
            consequence: CONSEQUENCE,
        })?;
        rows.read(Row {
            flag: "aerospike-set",
            env: "AEROSPIKE_SET",
            default: "",
            accepts: words(),
            meaning: "Accepted and unused.",
            consequence: CONSEQUENCE,
        })
    }

    /// The life of each class, in the order of [`Class::ALL`].
    fn lives(rows: &mut Rows<'_>) -> Read<[Duration; Class::ALL.len()]> {
        let fallback = rows.read(Row {
            flag: "cache-ttl",
            env: "CACHE_TTL",
            default: "60s",
            accepts: life(),
            meaning: "Life of every class but BEEF that has no value of its own.",
            consequence: "When set, by flag or variable, it replaces the defaults of the four classes.",
        })?;
        let tx = rows.read(Row {
            flag: "cache-ttl-tx",
            env: "CACHE_TTL_TX",
            default: "60s",
            accepts: life(),
            meaning: "Life of transactions and bundles.",
            consequence: "A NACK after it is a miss.",
        })?;
        let block = rows.read(Row {
            flag: "cache-ttl-block",
            env: "CACHE_TTL_BLOCK",
            default: "10m",
            accepts: life(),
            meaning: "Life of blocks.",
            consequence: "A NACK after it is a miss.",
        })?;
        let subtree = rows.read(Row {
            flag: "cache-ttl-subtree",
            env: "CACHE_TTL_SUBTREE",
            default: "5m",
            accepts: life(),
            meaning: "Life of subtree data.",
            consequence: "A NACK after it is a miss.",
        })?;
        let anchor = rows.read(Row {
            flag: "cache-ttl-anchor",
            env: "CACHE_TTL_ANCHOR",
            default: "2m",
            accepts: life(),
            meaning: "Life of anchors.",
            consequence: "A NACK after it is a miss.",
        })?;
        let beef = rows.read(Row {
            flag: "cache-ttl-beef",
            env: "CACHE_TTL_BEEF",
            default: "60s",
            accepts: life(),
            meaning: "Life of BEEF objects; -cache-ttl does not change it.",
            consequence: "A NACK after it is a miss.",
        })?;
        let own = [
            ("cache-ttl-tx", tx),
            ("cache-ttl-block", block),
            ("cache-ttl-subtree", subtree),
            ("cache-ttl-anchor", anchor),
            ("cache-ttl-beef", beef),
        ];
        let decides = |name| Self::ttl_source(name, |name| rows.is_set(name));
        Ok(own.map(|(name, own)| if decides(name) == name { own } else { fallback }))
    }

    /// Life of a class: its own value when set, else `cache-ttl` when that is set (not for BEEF), else its default.
    /// Never zero.
    pub const fn ttl(&self, class: Class) -> Duration {
        self.ttl[class as usize]
    }

    /// The setting that decides the life of a class: its own, or `cache-ttl` when that one alone is set (not for BEEF).
    pub(in crate::settings) fn ttl_source(of_class: &'static str, is_set: impl Fn(&str) -> bool) -> &'static str {
        let falls_back = of_class != "cache-ttl-beef" && !is_set(of_class) && is_set("cache-ttl");
        if falls_back { "cache-ttl" } else { of_class }
    }
}

fn life() -> Accepts<Duration> {
    time(MILLISECOND, LONGEST_LIFE)
}

fn ring_size() -> Accepts<u64> {
    any("16m to 64g, in k, m, g or bytes", values::ring_size)
}
