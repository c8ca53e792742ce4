//! Claims: of a multicast repair (`-dedup-mode strict`), of a recovery from upstream. A claim is a key with a life that
//! the first instance sets.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

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
        let now = wall_ms();
        let value = claim_value(&config.instance, now);
        let mut set = redis::cmd("SET");
        set.arg(dedup_name(key)).arg(&value).arg("PX").arg(millis(config.dedup_window));
        let mut first = set.clone();
        first.arg("NX");
        if self.ask(&first).await? != Value::Nil {
            return Ok(Claim::Ours);
        }
        let mut get = redis::cmd("GET");
        get.arg(dedup_name(key));
        if let Value::BulkString(held) = self.ask(&get).await?
            && let Some((instance, at)) = read_claim(&held)
            && instance != config.instance.as_bytes()
        {
            // A clock that is behind makes a claim look young, never older than it is.
            let age = Duration::from_millis(now.saturating_sub(at));
            if age < config.repeat_after {
                return Ok(Claim::Others { age });
            }
        }
        // Ours, too old to count, gone meanwhile, or none that can be read. Two who take over at once send twice.
        self.ask(&set).await?;
        Ok(Claim::Ours)
    }

    /// Claims the recovery of `key` for all instances; false when another has it.
    ///
    /// # Errors
    /// [`Unavailable`]: the caller recovers all the same.
    pub async fn claim_recovery(&self, key: &FrameKey) -> Result<bool, Unavailable> {
        let config = &self.0.config;
        let mut set = redis::cmd("SET");
        set.arg(recovery_name(key)).arg(&config.instance).arg("PX").arg(millis(config.recovery_window)).arg("NX");
        Ok(self.ask(&set).await? != Value::Nil)
    }

    /// Gives the claim of a recovery back that came to nothing, so that any instance may try again.
    pub async fn release_recovery(&self, key: &FrameKey) {
        let mut del = redis::cmd("DEL");
        del.arg(recovery_name(key));
        // Else it ends by itself.
        let _: Result<Value, Unavailable> = self.ask(&del).await;
    }
}

/// `<wall clock in ms> <instance>`.
pub(super) fn claim_value(instance: &str, at_ms: u64) -> Vec<u8> {
    format!("{at_ms} {instance}").into_bytes()
}

fn read_claim(value: &[u8]) -> Option<(&[u8], u64)> {
    let end = value.iter().position(|byte| *byte == b' ')?;
    let at = std::str::from_utf8(&value[..end]).ok()?.parse().ok()?;
    Some((&value[end + 1..], at))
}

/// Milliseconds of the wall clock, which instances share as well as they can.
pub(super) fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A life as Redis takes it: at least a millisecond.
pub(super) fn millis(life: Duration) -> u64 {
    u64::try_from(life.as_millis()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_read_back() {
        assert_eq!(read_claim(&claim_value("a b", 17)), Some((&b"a b"[..], 17)));
        assert_eq!(read_claim(&claim_value("", 0)), Some((&b""[..], 0)));
        // What the Go program writes counts as nobody's.
        for value in [&b""[..], b"1", b"instance-1", b"x 1"] {
            assert_eq!(read_claim(value), None);
        }
    }
}
