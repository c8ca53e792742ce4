//! The circuit breaker: opens after failures in a row, lets one attempt through after a time, and closes when that succeeds.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What the breaker lets through.
#[derive(Clone, Copy, Debug)]
enum Gate {
    /// Everything; so many attempts in a row have failed.
    Closed { failures: u32 },
    /// Nothing before this time.
    Open { until: Instant },
    /// One attempt at a time, which decides.
    HalfOpen,
}

#[derive(Debug)]
struct State {
    gate: Gate,
    /// An attempt that decides is under way.
    probing: bool,
}

/// One breaker, shared by all attempts at one peer.
#[derive(Debug)]
pub(super) struct Breaker {
    /// Failures in a row that open it.
    failures: u32,
    /// How long it stays open.
    open: Duration,
    state: Mutex<State>,
}

impl Breaker {
    pub(super) const fn new(failures: u32, open: Duration) -> Self {
        let state = State { gate: Gate::Closed { failures: 0 }, probing: false };
        Self { failures, open, state: Mutex::new(state) }
    }

    /// True from the failure that opened it to the success that closes it.
    pub(super) fn is_open(&self) -> bool {
        !matches!(self.state().gate, Gate::Closed { .. })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn opened(&self) -> Gate {
        Gate::Open { until: Instant::now() + self.open }
    }
}

/// Leave to make one attempt.
pub(super) struct Permit<'a> {
    breaker: Option<&'a Breaker>,
    is_probe: bool,
}

/// Leave to make an attempt, unless the breaker is open; without a breaker always.
pub(super) fn permit(breaker: Option<&Breaker>) -> Option<Permit<'_>> {
    let Some(one) = breaker else {
        return Some(Permit { breaker, is_probe: false });
    };
    let mut state = one.state();
    match state.gate {
        Gate::Closed { .. } => return Some(Permit { breaker, is_probe: false }),
        Gate::Open { until } if Instant::now() <= until => return None,
        Gate::Open { .. } | Gate::HalfOpen => state.gate = Gate::HalfOpen,
    }
    // Of all that wait one finds out; the others are told when it has.
    if state.probing {
        return None;
    }
    state.probing = true;
    Some(Permit { breaker, is_probe: true })
}

impl Permit<'_> {
    pub(super) fn succeeded(self) {
        if let Some(breaker) = self.breaker {
            let mut state = breaker.state();
            // One that began before the breaker opened says nothing of the peer now.
            if !matches!(state.gate, Gate::Open { .. }) {
                state.gate = Gate::Closed { failures: 0 };
            }
        }
    }

    pub(super) fn failed(self) {
        if let Some(breaker) = self.breaker {
            let mut state = breaker.state();
            state.gate = match state.gate {
                Gate::Closed { failures } if failures + 1 < breaker.failures => Gate::Closed { failures: failures + 1 },
                Gate::Closed { .. } | Gate::HalfOpen => breaker.opened(),
                open @ Gate::Open { .. } => open,
            };
        }
    }
}

/// Also when the attempt was cancelled: the next one finds out then.
impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if let Some(breaker) = self.breaker.filter(|_| self.is_probe) {
            breaker.state().probing = false;
        }
    }
}
