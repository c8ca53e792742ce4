//! Trying again: one policy for all that retry.
//!
//! [`Retry::run`] makes attempts as its [`Policy`] has it, with an optional circuit breaker around them. What an attempt
//! says is definitive or transient ([`Failure`]): a definitive answer (a MISS, a wrong password) is never tried again. A
//! cancellation ends a wait at once. The waits are the crate backon's.

mod breaker;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::settings::{Retry as Settings, RetryPolicy};
use breaker::Breaker;

/// When to try again. The seam: a caller knows nothing else of a policy.
pub(crate) trait Policy: Send + Sync {
    /// The waits between attempts; as many attempts follow the first as there are waits.
    fn waits(&self) -> Box<dyn Iterator<Item = Duration> + Send>;
}

/// One attempt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Never;

impl Policy for Never {
    fn waits(&self) -> Box<dyn Iterator<Item = Duration> + Send> {
        Box::new(std::iter::empty())
    }
}

/// Waits that grow by a factor up to a longest one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exponential {
    builder: ExponentialBuilder,
    longest: Duration,
}

impl Exponential {
    /// The policy of these settings; `attempts` counts the first one too.
    pub(crate) fn new(settings: &Settings) -> Self {
        let builder = ExponentialBuilder::new()
            .with_min_delay(settings.delay)
            .with_factor(settings.factor)
            .with_max_delay(settings.max_delay)
            .with_max_times(usize::try_from(settings.attempts.saturating_sub(1)).unwrap_or(usize::MAX));
        let builder = if settings.jitter { builder.with_jitter() } else { builder };
        Self { builder, longest: settings.max_delay }
    }
}

impl Policy for Exponential {
    fn waits(&self) -> Box<dyn Iterator<Item = Duration> + Send> {
        // backon adds its jitter on top of the longest wait.
        let longest = self.longest;
        Box::new(self.builder.build().map(move |wait| wait.min(longest)))
    }
}

/// What an attempt that did not succeed says of the next one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Failure<E> {
    /// The answer stands: another attempt gets the same.
    Definitive(E),
    /// Another attempt may do.
    Transient(E),
}

/// Why it was given up. The last error is kept, with the number of attempts made.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub(crate) enum GaveUp<E> {
    /// An answer that stands.
    #[error("{error} (attempt {attempts})")]
    Definitive {
        /// That answer.
        error: E,
        /// Attempts made.
        attempts: u32,
    },
    /// The policy has no further attempt.
    #[error("{last} (after {attempts} attempts)")]
    Exhausted {
        /// The last error.
        last: E,
        /// Attempts made.
        attempts: u32,
    },
    /// Cancelled while an attempt or a wait was under way.
    #[error("cancelled after {attempts} attempts")]
    Cancelled {
        /// The last error, if an attempt had ended.
        last: Option<E>,
        /// Attempts begun.
        attempts: u32,
    },
    /// Too many failures in a row before: nothing is tried for a while.
    #[error("the circuit breaker is open")]
    BreakerOpen {
        /// The last error, if an attempt was made before it opened.
        last: Option<E>,
        /// Attempts made.
        attempts: u32,
    },
}

/// A policy, and the breaker around it. Clones share the breaker.
#[derive(Clone)]
pub(crate) struct Retry {
    policy: Arc<dyn Policy>,
    breaker: Option<Arc<Breaker>>,
}

impl Retry {
    /// What the settings ask for.
    pub(crate) fn new(settings: &Settings) -> Self {
        let policy: Arc<dyn Policy> = match settings.policy {
            RetryPolicy::None => Arc::new(Never),
            RetryPolicy::Exponential => Arc::new(Exponential::new(settings)),
        };
        let breaker = (settings.breaker > 0).then(|| Arc::new(Breaker::new(settings.breaker, settings.breaker_open)));
        Self { policy, breaker }
    }

    /// One attempt, inside the same breaker.
    #[must_use]
    pub(crate) fn once(&self) -> Self {
        Self { policy: Arc::new(Never), breaker: self.breaker.clone() }
    }

    /// True while the breaker lets nothing through.
    pub(crate) fn is_open(&self) -> bool {
        self.breaker.as_ref().is_some_and(|breaker| breaker.is_open())
    }

    /// Makes attempts, numbered from 1, until one succeeds or it is given up.
    ///
    /// # Errors
    /// [`GaveUp`], with the last error.
    pub(crate) async fn run<T, E, F, A>(&self, cancel: &CancellationToken, mut attempt: A) -> Result<T, GaveUp<E>>
    where
        A: FnMut(u32) -> F,
        F: Future<Output = Result<T, Failure<E>>>,
    {
        let mut waits = self.policy.waits();
        let (mut attempts, mut last) = (0, None);
        loop {
            let Some(permit) = breaker::permit(self.breaker.as_deref()) else {
                return Err(GaveUp::BreakerOpen { last, attempts });
            };
            attempts += 1;
            let outcome = tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(GaveUp::Cancelled { last, attempts }),
                outcome = attempt(attempts) => outcome,
            };
            let error = match outcome {
                Ok(value) => {
                    permit.succeeded();
                    return Ok(value);
                }
                // A peer that gives a final answer works.
                Err(Failure::Definitive(error)) => {
                    permit.succeeded();
                    return Err(GaveUp::Definitive { error, attempts });
                }
                Err(Failure::Transient(error)) => {
                    permit.failed();
                    error
                }
            };
            let Some(wait) = waits.next() else {
                return Err(GaveUp::Exhausted { last: error, attempts });
            };
            last = Some(error);
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(GaveUp::Cancelled { last, attempts }),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}
