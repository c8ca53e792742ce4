//! How failures are tried again (module `backoff`): one policy for Redis, one for recoveries.

use std::time::Duration;

/// How failures are tried again (module `backoff`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retry {
    /// Wait longer each time, or do not try again.
    pub policy: RetryPolicy,
    /// Attempts in all, never 0.
    pub attempts: u32,
    /// Wait before the second attempt.
    pub delay: Duration,
    /// Growth of the wait, at least 1.
    pub factor: f32,
    /// Longest wait.
    pub max_delay: Duration,
    /// Spread the waits.
    pub jitter: bool,
    /// Failures in a row that open the breaker; 0: none.
    pub breaker: u32,
    /// How long it stays open.
    pub breaker_open: Duration,
}

/// Which policy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RetryPolicy {
    /// One attempt.
    None,
    /// Longer waits each time.
    Exponential,
}

/// The rows of one policy, named by the part that retries.
macro_rules! retry_rows {
    ($rows:ident, $flag:literal, $env:literal, breaker: $breaker:literal) => {{
        use crate::settings::accepts::{HOUR, MILLISECOND, any, one_of, switch, time, whole};
        use crate::settings::rows::Row;
        use crate::settings::{Retry, RetryPolicy, values};

        Retry {
            policy: $rows.read(Row {
                flag: concat!($flag, "-retry-policy"),
                env: concat!($env, "_RETRY_POLICY"),
                default: "exponential",
                accepts: one_of(&[("none", RetryPolicy::None), ("exponential", RetryPolicy::Exponential)]),
                meaning: "none, or exponential: wait longer after each failure.",
                consequence: "Definitive answers, such as a MISS or a wrong password, are never tried again.",
            })?,
            attempts: $rows.read(Row {
                flag: concat!($flag, "-retry-attempts"),
                env: concat!($env, "_RETRY_ATTEMPTS"),
                default: "3",
                accepts: whole(1..=100),
                meaning: "Attempts in all.",
                consequence: "The last error is the one told.",
            })?,
            delay: $rows.read(Row {
                flag: concat!($flag, "-retry-delay"),
                env: concat!($env, "_RETRY_DELAY"),
                default: "100ms",
                accepts: time(MILLISECOND, HOUR),
                meaning: "Wait before the second attempt.",
                consequence: "It grows from there.",
            })?,
            factor: $rows.read(Row {
                flag: concat!($flag, "-retry-factor"),
                env: concat!($env, "_RETRY_FACTOR"),
                default: "2",
                accepts: any("1 to 10", values::factor),
                meaning: "Growth of the wait.",
                consequence: "1: every wait is the same.",
            })?,
            max_delay: $rows.read(Row {
                flag: concat!($flag, "-retry-max-delay"),
                env: concat!($env, "_RETRY_MAX_DELAY"),
                default: "5s",
                accepts: time(MILLISECOND, HOUR),
                meaning: "Longest wait.",
                consequence: "It stops growing there.",
            })?,
            jitter: $rows.read(Row {
                flag: concat!($flag, "-retry-jitter"),
                env: concat!($env, "_RETRY_JITTER"),
                default: "true",
                accepts: switch(),
                meaning: "Spread each wait at random.",
                consequence: "Instances that failed together do not come back together.",
            })?,
            breaker: $rows.read(Row {
                flag: concat!($flag, "-retry-breaker"),
                env: concat!($env, "_RETRY_BREAKER"),
                default: $breaker,
                accepts: whole(0..=1000),
                meaning: "Failures in a row that open the circuit breaker; 0: none.",
                consequence: "While it is open nothing is tried: each attempt fails at once.",
            })?,
            breaker_open: $rows.read(Row {
                flag: concat!($flag, "-retry-breaker-open"),
                env: concat!($env, "_RETRY_BREAKER_OPEN"),
                default: "5s",
                accepts: time(MILLISECOND, HOUR),
                meaning: "How long the breaker stays open.",
                consequence: "Then one attempt decides whether it closes.",
            })?,
        }
    }};
}
pub(super) use retry_rows;
