//! Keeps the timers: the lease, the beacon, the look at the threads; and waits for the end.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use retry_common::counter::Counter;
use tokio::signal::unix::Signal;
use tokio::time::{Interval, Sleep};
use tokio_util::sync::CancellationToken;

use super::StartError;
use super::reload::Reload;
use super::spawn::Running;
use super::state::State;
use crate::beacon::BeaconSender;
use crate::service;
use crate::settings::Settings;
use crate::telemetry::LogLevel;

/// A thread without work looks ten times per second whether it is to end; on a busy machine it comes to that late.
const LEAST_PATIENCE: Duration = Duration::from_secs(1);
/// Between two looks whether a thread has ended.
const LOOK: Duration = Duration::from_secs(1);
/// Until an ADVERT that did not leave is sent again; twice as long each further time, and never longer than the interval. A link
/// that has come up has no multicast route for a moment.
const AGAIN: Duration = Duration::from_millis(500);

/// Returns when the daemon is to end: `shutdown` has completed, or the management API has ordered it, and what it announces
/// has had its time; or a second signal came meanwhile. That one cancels `hurry`, also later.
///
/// # Errors
/// [`StartError::Worker`]: a thread ended that was to go on.
pub(super) async fn supervise(
    settings: &Settings,
    log_level: &LogLevel,
    mut hangups: Signal,
    running: &mut Running,
    shutdown: impl Future<Output = ()>,
    hurry: &CancellationToken,
) -> Result<(), StartError> {
    let Running { state, workers, finishers, beacon, reload, .. } = running;
    let beacon = beacon.as_deref();
    tokio::pin!(shutdown);
    let mut lease = tokio::time::interval(settings.xdp.daemon_lease.min(settings.xdp.bpf_lease) / 4);
    let mut review = tokio::time::interval(LOOK);
    let mut announce = Announce::new(settings.beacon.interval);
    let mut watchdog = service::watchdog_interval().map(tokio::time::interval);
    let patience = settings.xdp.daemon_lease.max(LEAST_PATIENCE);
    let mut is_signalled = false;
    // None until the drain begins, then when it ends.
    let mut drained: Option<Pin<Box<Sleep>>> = None;
    let ended = loop {
        tokio::select! {
            () = &mut shutdown, if !is_signalled => {
                is_signalled = true;
                // A signal from here on means: at once. The one that began this is not heard again.
                hurry_at_signal(0, hurry);
                state.drain();
            }
            // The order comes by a signal or by the management API.
            () = state.drain_ordered.notified(), if drained.is_none() => {
                announce.now(beacon, state);
                tracing::info!(timeout = ?settings.admin.drain_timeout, "the drain has begun");
                drained = Some(Box::pin(tokio::time::sleep(settings.admin.drain_timeout)));
            }
            () = over(drained.as_mut()) => break Ok(()),
            () = hurry.cancelled() => break Ok(()),
            () = state.announce.notified() => announce.now(beacon, state),
            // A thread that hangs is a dead daemon: the kernel is to leave nothing to it.
            _ = lease.tick() => {
                let hung = workers.hung(patience).or_else(|| finishers.hung(patience));
                if state.set_hung(hung) {
                    state.renew_leases(&settings.xdp);
                }
            }
            // The service manager ends and starts anew what has a thread that hangs.
            () = due(watchdog.as_mut()) => {
                if workers.hung(patience).or_else(|| finishers.hung(patience)).is_none() {
                    service::tell(service::State::Progress);
                }
            }
            _ = review.tick() => {
                if let Some(failed) = workers.failed().or_else(|| finishers.failed()) {
                    break Err(failed);
                }
            }
            _ = announce.timer.tick(), if beacon.is_some() => announce.now(beacon, state),
            // Without a file there is nothing to be read again, and it means what it does to the field's program.
            _ = hangups.recv() => if settings.files.are_named() || settings.admin.has_files() {
                read_again(Arc::clone(reload));
            } else {
                log_level.toggle_debug();
            },
        }
    };
    if !is_signalled {
        // A supervisor's signal after an order of the management API is its first.
        hurry_at_signal(1, hurry);
    }
    ended
}

/// Reads the settings again, on a thread of its own: it waits for files, and for NACKs under way.
fn read_again(reload: Arc<Reload>) {
    tokio::task::spawn_blocking(move || {
        service::tell(service::State::Reloading);
        // What was refused is told in the log, and the daemon goes on as it was.
        let _ = reload.read_again("SIGHUP");
        service::tell(service::State::Ready);
    });
}

/// Cancels `hurry` at a signal, after `first` others.
fn hurry_at_signal(first: usize, hurry: &CancellationToken) {
    let (hurry, signal) = (hurry.clone(), crate::shutdown::signal());
    tokio::spawn(async move {
        signal.await;
        for _ in 0..first {
            crate::shutdown::signal().await;
        }
        hurry.cancel();
    });
}

/// Completes with each tick; never without a timer.
async fn due(timer: Option<&mut Interval>) {
    match timer {
        Some(timer) => {
            timer.tick().await;
        }
        None => std::future::pending().await,
    }
}

/// Completes when the time to drain is over; never while it has not begun.
async fn over(drained: Option<&mut Pin<Box<Sleep>>>) {
    match drained {
        Some(sleep) => sleep.await,
        None => std::future::pending().await,
    }
}

/// When the next ADVERT leaves.
struct Announce {
    timer: Interval,
    again: Duration,
}

impl Announce {
    fn new(interval: Duration) -> Self {
        Self { timer: tokio::time::interval(interval), again: AGAIN }
    }

    fn now(&mut self, beacon: Option<&BeaconSender>, state: &State) {
        match beacon.map(|beacon| beacon.send(state.is_draining())) {
            Some(Ok(sent)) => {
                state.count(Counter::AdvertsSent, sent);
                self.again = AGAIN;
            }
            Some(Err(error)) => {
                let again = self.again.min(self.timer.period());
                tracing::warn!(%error, ?again, "a beacon did not leave");
                self.timer.reset_after(again);
                self.again = again.saturating_mul(2);
            }
            None => {}
        }
    }
}
