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
//! sockets of other programs     ports             KernelFill                     kernel's fill, on or off
//! a quarter of the lease        (supervise)       State: Datapath                lease in the kernel's settings
//! all counters: State           (HTTP), exporter  Source                         /metrics, /readyz, collector
//!
//! The end
//! signal                        (supervise)       drain: AtomicBool              all threads
//! threads have ended            (drain)           CancellationToken              all tasks
//! ```

mod build;
mod drain;
mod error;
mod fill_switch;
mod follow;
mod kernel;
mod management;
mod spawn;
mod state;
mod supervise;
#[cfg(test)]
mod tests;
mod workers;

use std::future::Future;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::ingress::fill::Fill;
use crate::settings::Settings;
use crate::telemetry::LogLevel;
use build::{Built, Parts, build};
use drain::{drain, end};
use spawn::spawn;
use supervise::supervise;

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
    let Built { parts, kept } = build(settings)?;
    see(&parts.work.fill);
    let ended = serve(settings, &log_level, hangups, parts, shutdown).await;
    end(kept).await;
    ended
}

async fn serve(
    settings: &Settings,
    log_level: &LogLevel,
    hangups: Signal,
    parts: Parts,
    shutdown: impl Future<Output = ()>,
) -> Result<(), StartError> {
    let mut running = spawn(settings, log_level, parts).await?;
    let ended = supervise(settings, log_level, hangups, &mut running, shutdown).await;
    drain(running).await;
    ended
}
