//! Builds the daemon from its settings, runs it until the shutdown, and takes it down in the right order.
//!
//! Four steps, each in a file of its name: `build` opens all parts and connects them, `spawn` starts their threads and tasks,
//! `supervise` keeps the timers until the end, `drain` ends everything. The table has a line per connection: what carries the
//! data, a thread or, in parentheses, a task of the part of that name; and the channel or shared object that it goes through.
//!
//! ```text
//! from                          thread, (task)    through                        to
//! ----------------------------  ----------------  -----------------------------  -----------------------------------
//! Frames
//! sockets of the data groups    ingress-N         Mutex<Writer>                  frame log
//! tee socket                    tee               Mutex<Writer>                  frame log
//! kernel's fill: the lanes      follow            Mutex<Writer>                  counters; old frames dropped ahead
//! PUT, DELETE of a frame        (management API)  Mutex<Writer>                  frame log
//! each new frame                any of these      OnStored, queue of the Store   (Store), Redis
//! frames at the end of life     sweep             Mutex<Writer>                  dropped; State: how full the log is
//!
//! NACKs
//! NACK socket                   nack-N            Server: Engine, Sender         NACK socket
//! kernel's events: ring buffer  events            Server: Engine, Sender         NACK socket
//! Server: a miss, a claim       (Pending, Store)  mpsc of Reply                  thread replies: Server
//! Server: after the MISS        (Recovery)        queue of jobs, mpsc of Reply   thread replies: Server
//! Sender: neighbour unresolved  neighbours        queue of the Gate              Sender
//! Sender: multicast has left    any of these      OnMulticast, queue of Store    (Store), Redis, other instances
//! Redis: another's repair       (Store)           Log                            hold-down table
//!
//! Endpoints and sources
//! sockets of the beacon groups  beacons           OnAdvert                       SharedRegistry: Recovery, API
//! sockets of the beacon groups  beacons           Control, Notify                (Control)
//! DNS                           (Control)         watch                          (Control)
//! (Control)                     joins-PORT        mpsc of sets of sources        sockets of data and beacon groups
//! sources that are joined       joins-PORT        OnJoined                       KernelSources: a map of the kernel
//!
//! This host and this daemon
//! interfaces: rtnetlink         (Follower)        handles of the parts           Datapath, Rejoin, Sender, BeaconSender
//! Follower: ready again         (supervise)       Notify of State                BeaconSender
//! POST of the order to drain    (supervise)       Notify of State                BeaconSender
//! SIGHUP, POST of settings      (a blocking one)  Reload                         Engine, Datapath, Fill: what changed
//! what is joined: Rejoin        (rejoin)          raw socket, at an interval     routers and switches
//! drawn NACKs: ring buffer, queue  talkers         Talkers                        State: the top talkers
//! sockets of other programs     ports             KernelFill                     kernel's fill, on or off
//! a quarter of the lease        (supervise)       State: Datapath                lease in the kernel's settings
//! membership and NACK sockets   fdstore           Keeping: descriptors           service manager, or holder
//! all counters: State           (HTTP), exporter  Source                         /metrics, /readyz, collector
//! State, Store, SharedRegistry  (HTTP)            StatusSource                   status page, /v1/status
//!
//! The end
//! signal, order to drain        (supervise)       AtomicBool of the workers      threads that take something new
//! nothing is in flight          (drain)           AtomicBool of the finishers    replies, neighbours
//! threads have ended            (drain)           CancellationToken              all tasks
//! ```

mod build;
mod confine;
mod drain;
mod error;
mod fill_switch;
mod follow;
mod handover;
mod kernel;
mod management;
pub(crate) mod memory;
mod reload;
mod spawn;
mod state;
mod status;
mod supervise;
#[cfg(test)]
mod tests;
mod workers;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::ingress::fill::Fill;
use crate::service;
use crate::settings::Settings;
use crate::telemetry::LogLevel;
use build::{Built, Parts, build};
use drain::{drain, end};
use spawn::{Http, bind, spawn};
use supervise::supervise;

pub use confine::confine;
pub use error::StartError;

/// Runs the daemon until `shutdown` completes.
///
/// # Errors
/// [`StartError`]: the line that the operator acts on. Nothing of the daemon is left behind.
pub async fn run(
    settings: &Settings,
    log_level: LogLevel,
    shutdown: impl Future<Output = ()>,
) -> Result<(), StartError> {
    run_seen(settings, log_level, shutdown, |_| {}).await
}

/// As [`run`]. Calls `see` once with the [`Fill`], so that a test can lock the frame log.
async fn run_seen(
    settings: &Settings,
    log_level: LogLevel,
    shutdown: impl Future<Output = ()>,
    see: impl FnOnce(&Arc<Fill>),
) -> Result<(), StartError> {
    // Before anything else: SIGHUP ends a process that has no handler for it.
    let hangups = signal(SignalKind::hangup()).map_err(StartError::Thread)?;
    let http = bind(settings).await?;
    tokio::pin!(shutdown);
    let Some((built, is_over)) = build_until(settings, &log_level, shutdown.as_mut()).await? else {
        tracing::info!("told to end while it started");
        return Ok(());
    };
    let Built { parts, kept } = built;
    see(&parts.work.fill);
    if is_over {
        // It has not served: what an earlier daemon left stays as it was.
        tracing::info!("told to end while it started");
        drop(parts);
        end(kept).await;
        return Ok(());
    }
    let ended = serve(settings, &log_level, hangups, http, parts, shutdown).await;
    end(kept).await;
    ended
}

/// Builds on a thread of its own, and tells it when `shutdown` completes meanwhile, as the second value says. Nothing is
/// built when it came in time.
async fn build_until(
    settings: &Settings,
    log_level: &LogLevel,
    mut shutdown: Pin<&mut impl Future<Output = ()>>,
) -> Result<Option<(Built, bool)>, StartError> {
    let told = CancellationToken::new();
    let (settings, log_level, heard) = (settings.clone(), log_level.clone(), told.clone());
    let mut building = tokio::task::spawn_blocking(move || build(&settings, &log_level, &heard));
    let (built, is_over) = tokio::select! {
        built = &mut building => (built, false),
        () = &mut shutdown => {
            told.cancel();
            (building.await, true)
        }
    };
    match built.unwrap_or_else(|error| Err(StartError::Thread(error.into()))) {
        Ok(built) => Ok(Some((built, is_over))),
        Err(_) if is_over => Ok(None),
        Err(error) => Err(error),
    }
}

async fn serve(
    settings: &Settings,
    log_level: &LogLevel,
    hangups: Signal,
    http: Http,
    parts: Parts,
    shutdown: impl Future<Output = ()>,
) -> Result<(), StartError> {
    let mut running = spawn(settings, log_level, http, parts).await?;
    service::tell(service::State::Ready);
    let hurry = CancellationToken::new();
    let ended = supervise(settings, log_level, hangups, &mut running, shutdown, &hurry).await;
    service::tell(service::State::Stopping);
    // A part that has failed may be the one that is waited for.
    let grace = if ended.is_ok() { settings.admin.shutdown_grace } else { Duration::ZERO };
    drain(running, settings, grace, hurry).await;
    ended
}
