//! The circuit breaker: failsafe's state machine, and of those who wait for it to close one at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use failsafe::backoff::Constant;
use failsafe::failure_policy::{self, ConsecutiveFailures};
use failsafe::{Config, Instrument, StateMachine};

const CLOSED: u8 = 0;
const OPEN: u8 = 1;
const HALF_OPEN: u8 = 2;

/// What the state machine last told.
#[derive(Clone, Debug, Default)]
struct State(Arc<AtomicU8>);

impl Instrument for State {
    fn on_call_rejected(&self) {}

    fn on_open(&self) {
        self.0.store(OPEN, Ordering::Relaxed);
    }

    fn on_half_open(&self) {
        self.0.store(HALF_OPEN, Ordering::Relaxed);
    }

    fn on_closed(&self) {
        self.0.store(CLOSED, Ordering::Relaxed);
    }
}

/// Opens after failures in a row, lets one attempt through after a time, and closes when that succeeds.
#[derive(Debug)]
pub(super) struct Breaker {
    machine: StateMachine<ConsecutiveFailures<Constant>, State>,
    state: State,
    probing: AtomicBool,
}

impl Breaker {
    pub(super) fn new(failures: u32, open: Duration) -> Self {
        let state = State::default();
        let policy = failure_policy::consecutive_failures(failures, failsafe::backoff::constant(open));
        let machine = Config::new().failure_policy(policy).instrument(state.clone()).build();
        Self { machine, state, probing: AtomicBool::new(false) }
    }

    /// True from the failure that opened it to the success that closes it.
    pub(super) fn is_open(&self) -> bool {
        self.state.0.load(Ordering::Relaxed) != CLOSED
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
    if !one.machine.is_call_permitted() {
        return None;
    }
    let is_probe = one.is_open();
    // Of all who waited one finds out; the others are told when it has.
    if is_probe && one.probing.swap(true, Ordering::Relaxed) {
        return None;
    }
    Some(Permit { breaker, is_probe })
}

impl Permit<'_> {
    pub(super) fn succeeded(self) {
        if let Some(breaker) = self.breaker {
            breaker.machine.on_success();
        }
    }

    pub(super) fn failed(self) {
        if let Some(breaker) = self.breaker {
            breaker.machine.on_error();
        }
    }
}

/// Also when the attempt was cancelled: the next one finds out then.
impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if let Some(breaker) = self.breaker.filter(|_| self.is_probe) {
            breaker.probing.store(false, Ordering::Relaxed);
        }
    }
}
