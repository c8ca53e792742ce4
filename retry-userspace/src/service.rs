//! What the service manager is told of the daemon's state (sd_notify(3)): systemd, or another with the same protocol. Without
//! one, where `NOTIFY_SOCKET` is not set, nothing is told.

use std::time::Duration;

use sd_notify::NotifyState;

/// What is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It serves: a unit with `Type=notify` has started.
    Ready,
    /// Every thread makes progress: the unit's `WatchdogSec` begins anew.
    Progress,
    /// It reads its settings again; [`State::Ready`] says that it has.
    Reloading,
    /// It ends.
    Stopping,
}

/// Between two looks at the threads: a quarter of the unit's `WatchdogSec`. `None` where the unit has none, or where this is not
/// the process that it watches.
pub(crate) fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero()).map(|limit| limit / 4)
}

/// Tells it. A service manager that does not listen is no reason to stop serving.
pub(crate) fn tell(state: State) {
    let told = match state {
        State::Ready => NotifyState::Ready,
        State::Progress => NotifyState::Watchdog,
        State::Reloading => NotifyState::Reloading,
        State::Stopping => NotifyState::Stopping,
    };
    if let Err(error) = sd_notify::notify(&[told]) {
        tracing::debug!(%error, ?state, "the service manager was not told");
    }
}
