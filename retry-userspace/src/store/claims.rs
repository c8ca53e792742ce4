//! Claims: of a multicast repair (`-dedup-mode strict`), of a recovery from upstream. A claim is a key with a life that
//! the first instance sets.
//!
//! The wall clocks of instances differ, so no claim says when it was made. Its age is what Redis has taken off its life: the
//! claim says how long it was to live, Redis how long it still will.

use std::net::Ipv6Addr;
use std::time::Duration;

use redis::Value;
use retry_common::counter::Counter;
use retry_common::key::FrameKey;

use super::{Store, Unavailable, dedup_name, recovery_name};

/// Who may multicast a repair.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Claim {
    /// We.
    Ours,
    /// Another instance did, that long ago.
    Others {
        /// Time since.
        age: Duration,
    },
}

impl Store {
    /// Claims the multicast repair of `key` before it is sent.
    ///
    /// Another instance's claim counts for `repeat_after`: a listener that asks again after that has lost its repair too.
    ///
    /// # Errors
    /// [`Unavailable`]: the caller sends all the same.
    pub async fn claim_repair(&self, key: &FrameKey) -> Result<Claim, Unavailable> {
        // A claim takes up to three commands, and a listener's patience is one.
        tokio::time::timeout(self.limit(), self.claim(key)).await.unwrap_or_else(|_| {
            self.0.counters.one(Counter::CacheErrors);
            Err(Unavailable::Late)
        })
    }

    async fn claim(&self, key: &FrameKey) -> Result<Claim, Unavailable> {
        let config = &self.0.config;
        let name = dedup_name(key);
        let mut set = redis::cmd("SET");
        set.arg(&name).arg(claim_value(&config.instance, config.dedup_window));
        set.arg("PX").arg(millis(config.dedup_window));
        let mut first = set.clone();
        first.arg("NX");
        if self.ask(&first).await? != Value::Nil {
            return Ok(Claim::Ours);
        }
        let (mut get, mut left) = (redis::cmd("GET"), redis::cmd("PTTL"));
        get.arg(&name);
        left.arg(&name);
        if let Ok([Value::BulkString(held), Value::Int(left)]) =
            <[Value; 2]>::try_from(self.ask_all([&get, &left]).await?)
            && let Some((instance, life)) = read_claim(&held)
            && instance != config.instance.as_bytes()
            && let Some(age) = age(life, left)
            && age < config.repeat_after
        {
            return Ok(Claim::Others { age });
        }
        // Ours, too old to count, gone meanwhile, or none that can be read. Two who take over at once send twice.
        self.ask(&set).await?;
        Ok(Claim::Ours)
    }

    /// Claims the recovery of `key` for all instances; false when another has it. With an `asker` it is claimed for that listener
    /// alone, and for others each instance recovers the frame by itself.
    ///
    /// # Errors
    /// [`Unavailable`]: the caller recovers all the same.
    pub async fn claim_recovery(&self, key: &FrameKey, asker: Option<Ipv6Addr>) -> Result<bool, Unavailable> {
        let config = &self.0.config;
        let mut set = redis::cmd("SET");
        set.arg(recovery_name(key, asker))
            .arg(&config.instance)
            .arg("PX")
            .arg(millis(config.recovery_window))
            .arg("NX");
        Ok(self.ask(&set).await? != Value::Nil)
    }

    /// Gives the claim of a recovery back that came to nothing, so that any instance may try again.
    pub async fn release_recovery(&self, key: &FrameKey, asker: Option<Ipv6Addr>) {
        let mut del = redis::cmd("DEL");
        del.arg(recovery_name(key, asker));
        // Else it ends by itself.
        let _: Result<Value, Unavailable> = self.ask(&del).await;
    }
}

/// `<life in ms> <instance>`: the life that a fresh claim gets.
///
/// Earlier versions wrote the time of their wall clock there. Between them and this one, a claim of the other counts for nothing:
/// a repair may be sent twice, and none is held back.
pub(super) fn claim_value(instance: &str, life: Duration) -> Vec<u8> {
    format!("{} {instance}", millis(life)).into_bytes()
}

fn read_claim(value: &[u8]) -> Option<(&[u8], Duration)> {
    let end = value.iter().position(|byte| *byte == b' ')?;
    let life = std::str::from_utf8(&value[..end]).ok()?.parse().ok()?;
    Some((&value[end + 1..], Duration::from_millis(life)))
}

/// How old a claim of this life is that Redis keeps for another `left_ms`. `None` for what Redis keeps for longer than that: the
/// server's clock was set back, or another server has taken over whose clock is behind. Such a claim must not silence an instance.
fn age(life: Duration, left_ms: i64) -> Option<Duration> {
    life.checked_sub(Duration::from_millis(u64::try_from(left_ms).ok()?))
}

/// A life as Redis takes it: at least a millisecond.
pub(super) fn millis(life: Duration) -> u64 {
    u64::try_from(life.as_millis()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_claim_is_read_back() {
        assert_eq!(read_claim(&claim_value("a b", MINUTE)), Some((&b"a b"[..], MINUTE)));
        assert_eq!(read_claim(&claim_value("", Duration::ZERO)), Some((&b""[..], Duration::from_millis(1))));
        // What the Go program writes counts as no instance's.
        for value in [&b""[..], b"1", b"instance-1", b"x 1"] {
            assert_eq!(read_claim(value), None);
        }
    }

    #[test]
    fn the_age_is_what_has_gone_of_the_life() {
        assert_eq!(age(MINUTE, 59_000), Some(Duration::from_secs(1)));
        assert_eq!(age(MINUTE, 60_000), Some(Duration::ZERO));
        // Gone, without an end, or longer than it was to live.
        assert_eq!([-2, -1, 60_001].map(|left| age(MINUTE, left)), [None; 3]);
        // A time of the wall clock, as earlier versions wrote it, makes the claim an old one.
        let (_, life) = read_claim(b"1790000000000 a").expect("a number");
        assert!(age(life, 59_000).is_some_and(|age| age > MINUTE));
    }
}
