//! Builds the daemon from its settings, runs it until the shutdown, and takes it down in the right order.
//!
//! Four steps, each in a file of its name: `build` opens all parts and connects them, `spawn` starts their threads and tasks,
//! `supervise` keeps the timers until the end, `drain` ends everything. Who hands what to whom, and over which channel:
//!
//! ```text
//!  a part or its source          thread, (task)    by                     to
//!  ---------------------------------------------------------------------------------------------------------------
//!  frames
//!    data groups' sockets     -> ingress-N      -> Mutex<Writer>       -> frame log, which the kernel program reads
//!    tee socket               -> tee            -> Mutex<Writer>       -> frame log
//!    lanes, the kernel's fill -> follow         -> Mutex<Writer>       -> counted; old frames dropped ahead of it
//!    PUT /v1/frames           -> (management)   -> Mutex<Writer>       -> frame log
//!    each new frame           -> any of these   -> OnStored            -> Store, queue of frames to write  -> Redis
//!    end of life              -> sweep          -> Mutex<Writer>       -> frame log; State keeps how full it is
//!
//!  NACKs
//!    NACK socket              -> nack-N         -> Server: Engine      -> Sender -> NACK socket
//!    the kernel's ring buffer -> events         -> Server: Engine      -> Sender -> NACK socket
//!    Server, on a miss        -> Pending        -> (Store's answer)    -> mpsc of Reply   -> replies -> Server
//!    Server, after the MISS   -> Pending        -> (Recovery)          -> mpsc of Reply   -> replies -> Server
//!    Sender, no neighbour yet -> Gate, queue    -> neighbours          -> Sender
//!    Sender, multicast repair -> OnMulticast    -> Store, queue        -> Redis           -> other instances
//!    Redis, others' repairs   -> (Store)        -> Log                 -> hold-down table, which the kernel reads
//!
//!  who is there
//!    beacon groups' sockets   -> beacons        -> OnAdvert            -> SharedRegistry  -> Recovery, management
//!    beacon groups' sockets   -> beacons        -> Control: manifests
//!    DNS                      -> (Control)      -> two mpsc of sources -> joins-PORT: data groups, beacon groups
//!    joins-PORT, data groups  -> OnJoined       -> KernelSources       -> map that the kernel program reads
//!
//!  this host and this daemon
//!    rtnetlink                -> (Follower)     -> Datapath, Attachments, Rejoin, Sender, BeaconSender; State
//!    Follower: ready again    -> State          -> Notify              -> (supervise)     -> BeaconSender
//!    POST /v1/drain           -> State          -> Notify              -> (supervise)     -> BeaconSender
//!    who has which port open  -> ports          -> KernelFill, on or off
//!    a quarter of the lease   -> (supervise)    -> State: Datapath     -> lease in the kernel's settings
//!    State                    -> Source         -> /metrics and /readyz, management, exporter
//!
//!  the end
//!    signal                   -> (supervise)    -> drain               -> AtomicBool: threads; CancellationToken: tasks
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

/// As [`run`]; `see` is shown what fills the log, for tests that hold its lock.
async fn run_seen(
    settings: &Settings,
    log_level: LogLevel,
    shutdown: impl Future<Output = ()>,
    see: impl FnOnce(&Arc<Fill>),
) -> Result<(), StartError> {
    // Before anything else: a hang-up that is not watched for ends a process.
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
