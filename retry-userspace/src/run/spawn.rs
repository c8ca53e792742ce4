//! Starts the threads and tasks of the parts, and says that the daemon serves.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::StartError;
use super::build::{Outlives, Parts, Work};
use super::confine;
use super::fill_switch::{self, FillSwitch, NackPortWatch};
use super::follow::Follower;
use super::reload::{Admits, Reload};
use super::state::State;
use super::status::StatusPage;
use super::workers::Workers;
use crate::admin::{self, manage};
use crate::beacon::{self, BeaconSender};
use crate::clock::monotonic_ns;
use crate::datapath::DrawnNacks;
use crate::fdstore::Keeping;
use crate::ingress::fill::Fill;
use crate::ingress::rejoin;
use crate::ingress::subscription::{Rejoin, Subscription, data_groups};
use crate::limits::Review;
use crate::nack::{self, Server};
use crate::net::nack_socket::NackSocket;
use crate::settings::Settings;
use crate::stop_flag::StopFlag;
use crate::telemetry::LogLevel;

/// Between two looks for log lines of the kernel program.
const LOG_LINES_PAUSE: Duration = Duration::from_millis(100);

/// How long a program may go on over packets that its CPU has taken, after the link was changed.
const LAST_PACKETS: Duration = Duration::from_millis(20);

/// What runs.
pub(super) struct Running {
    pub(super) state: Arc<State>,
    /// Takes the replies that those wait for who are in flight.
    pub(super) server: Arc<Server>,
    /// Makes room for the kernel's fill while no daemon runs.
    pub(super) fill: Arc<Fill>,
    /// The threads that take something new.
    pub(super) workers: Workers,
    /// The threads that finish what is in flight.
    pub(super) finishers: Workers,
    pub(super) beacon: Option<Arc<BeaconSender>>,
    /// Changes settings.
    pub(super) reload: Arc<Reload>,
    /// Serves the metrics.
    pub(super) metrics: JoinHandle<io::Result<()>>,
    /// Serves the management API.
    pub(super) management: Option<JoinHandle<io::Result<()>>>,
    /// Ends the management API.
    pub(super) manage_until: CancellationToken,
    /// Ends the other tasks.
    pub(super) cancel: CancellationToken,
}

/// The addresses of HTTP, bound.
pub(super) struct Http {
    metrics: admin::Listener,
    management: Option<manage::Listener>,
    admits: Admits,
}

/// Between two looks who has asked.
const REVIEW_PAUSE: Duration = Duration::from_secs(1);
/// Between two looks whether to stop.
const STOP_PAUSE: Duration = Duration::from_millis(100);

/// Looks every second who has become known, until `stop`.
fn keep_known(mut known: Review, stop: &StopFlag) {
    let mut next = Instant::now() + REVIEW_PAUSE;
    while !stop.is_asked() {
        std::thread::sleep(STOP_PAUSE);
        if Instant::now() >= next {
            known.review(monotonic_ns());
            next = Instant::now() + REVIEW_PAUSE;
        }
    }
}

/// Binds the addresses of HTTP: what they refuse ends the start before anything is attached or joined.
pub(super) async fn bind(settings: &Settings) -> Result<Http, StartError> {
    let admits = Admits::open(settings)?;
    let (metrics, management) = (bind_metrics(settings, &admits).await?, bind_management(settings, &admits).await?);
    Ok(Http { metrics, management, admits })
}

/// Starts everything.
pub(super) async fn spawn(
    settings: &Settings,
    log_level: &LogLevel,
    http: Http,
    parts: Parts,
) -> Result<Running, StartError> {
    let Parts { fabric, state, mut workers, mut work, management, outlives, cancel } = parts;
    let Http { metrics, management: managed, admits } = http;
    management.reload.reach_http(admits);
    let (server, mut finishers) = (Arc::clone(&work.server), workers.apart());
    let beacon = beacon::Config::from(settings, &fabric).map(BeaconSender::open).transpose();
    let beacon = beacon.map_err(StartError::Beacon)?.map(Arc::new);
    if let Some(beacon) = &beacon {
        management.reload.reach_beacon(beacon);
    }
    let follower = Follower::new(settings, &fabric, &state, beacon.as_ref(), &work);
    let nack = work.socket.local_addr();
    let joined: Vec<Rejoin> =
        work.joins.first().into_iter().chain([&work.beacons.subscription]).map(Subscription::rejoin).collect();
    let (fill, mut old_log) = (Arc::clone(&work.fill), work.old_log.take());
    let socket = Arc::clone(&work.socket);
    start_workers(settings, &state, &mut workers, &mut finishers, work)?;

    // Before `/readyz` says ready: without a lease the kernel passes NACKs on.
    state.renew_leases(&settings.xdp);
    // What is left to be read over after the change of programs is as little as can be.
    if let Some(old_log) = &mut old_log {
        tokio::task::block_in_place(|| old_log.read_over(&fill));
    }
    state.go_live(settings)?;
    if let Some(old_log) = &mut old_log {
        // Another CPU may be running the former program over its last packets.
        tokio::time::sleep(LAST_PACKETS).await;
        tokio::task::block_in_place(|| old_log.read_over(&fill));
    }
    drop(old_log);
    // The first look is over before the daemon says that it is ready.
    let follower = follower.look_once().await;
    tokio::spawn(follower.run(cancel.clone()));
    keep(outlives, &socket, joined.clone(), &mut workers)?;
    let interval = settings.ingress.rejoin_interval;
    if !interval.is_zero() {
        let cancel = cancel.clone();
        tokio::spawn(async move { cancel.run_until_cancelled(rejoin::keep(interval, joined)).await });
    }
    let reload = Arc::clone(&management.reload);
    let metrics =
        metrics.serve(Arc::new(StatusPage::new(settings, &management, confine::told(settings))), log_level.clone());
    let manage_until = CancellationToken::new();
    let management = managed.map(|listener| listener.serve(Arc::new(management), manage_until.clone()));
    tracing::info!(
        %nack,
        ingress = %fabric.ingress.name,
        groups = data_groups(settings).len(),
        metrics = %settings.admin.metrics_addr,
        "serving"
    );
    Ok(Running { state, server, fill, workers, finishers, beacon, reload, metrics, management, manage_until, cancel })
}

/// Keeps what outlives the daemon, on a thread: thousands of membership sockets' groups take their time to join.
fn keep(
    Outlives { config, found }: Outlives,
    socket: &NackSocket,
    joined: Vec<Rejoin>,
    workers: &mut Workers,
) -> Result<(), StartError> {
    if !config.handover {
        // Those that it waits for take a second at most.
        tokio::task::spawn_blocking(|| found.release());
        return Ok(());
    }
    let (keeping, tells) = Keeping::new(config, found, socket.as_fd(), joined.len()).map_err(StartError::Thread)?;
    workers.start_unwatched("fdstore", move |stop| {
        for (joined, tell) in joined.iter().zip(tells) {
            joined.keep_memberships(Box::new(move |sockets| tell.tell(sockets)));
        }
        keeping.run(stop);
        Ok(())
    })
}

async fn bind_metrics(settings: &Settings, admits: &Admits) -> Result<admin::Listener, StartError> {
    let config = admin::Config::from(settings, &admits.token);
    let address = config.address;
    let bound = admin::Listener::bind(config).await;
    bound.map_err(|source| StartError::Admin { address, source })
}

async fn bind_management(settings: &Settings, admits: &Admits) -> Result<Option<manage::Listener>, StartError> {
    let Some(config) = manage::Config::from(settings, &admits.token, admits.tls.as_ref()) else {
        return Ok(None);
    };
    let address = config.address;
    let bound = manage::Listener::bind(config).await;
    bound.map(Some).map_err(|source| StartError::Management { address, source })
}

/// Starts the threads, in the order of the table in `run`.
fn start_workers(
    settings: &Settings,
    state: &Arc<State>,
    workers: &mut Workers,
    finishers: &mut Workers,
    work: Work,
) -> Result<(), StartError> {
    let Work {
        server,
        socket,
        gate,
        fill,
        joins,
        beacons,
        tee,
        known,
        kernel_fill,
        events,
        mut drawn,
        log_lines,
        replies,
        ..
    } = work;
    let talkers = server.talkers.clone();
    for (number, mut joins) in joins.into_iter().enumerate() {
        let fill = Arc::clone(&fill);
        workers.start(&format!("ingress-{number}"), move |stop| fill.run(&mut joins, stop))?;
    }
    let mut fill_switch = kernel_fill.map(|kernel| FillSwitch::new(kernel, settings));
    if let Some(switch) = &mut fill_switch {
        switch.review();
        let fill = Arc::clone(&fill);
        workers.start("follow", move |stop| {
            fill.run_follow(stop);
            Ok(())
        })?;
    }
    let nack_port = NackPortWatch::new(socket.local_addr(), Arc::clone(&server.counters));
    workers.start("ports", move |stop| {
        fill_switch::watch(nack_port, fill_switch, stop);
        Ok(())
    })?;
    workers.start("known", move |stop| {
        keep_known(known, stop);
        Ok(())
    })?;
    let (sweeping, swept) = (Arc::clone(&fill), Arc::clone(state));
    workers.start("sweep", move |stop| {
        sweeping.run_sweep(stop, |seen| swept.saw_log(seen));
        Ok(())
    })?;
    workers.start("beacons", move |stop| beacons.run(stop))?;
    if let Some(tee) = tee {
        workers.start("tee", move |stop| fill.run_tee(&tee, stop))?;
    }

    for number in 0..nack::Config::from(settings).workers {
        let (server, socket) = (Arc::clone(&server), Arc::clone(&socket));
        workers.start(&format!("nack-{number}"), move |stop| server.serve_socket(&socket, stop))?;
    }
    let holding = Arc::clone(&server);
    finishers.start("neighbours", move |stop| holding.serve_held(&gate, stop))?;
    if let Some(mut events) = events {
        let server = Arc::clone(&server);
        workers.start("events", move |stop| server.serve_events(&mut events, stop))?;
    }
    finishers.start("replies", move |stop| {
        server.serve_replies(&replies, stop);
        Ok(())
    })?;
    if let Some(talkers) = talkers {
        workers.start_unwatched("talkers", move |stop| {
            talkers.run(|| drawn.as_mut().and_then(DrawnNacks::take), stop);
            Ok(())
        })?;
    }
    // Readiness waits for these. The kernel's log lines are no service.
    state.workers_total.store(workers.counted() + finishers.counted(), Ordering::Relaxed);
    if let Some(mut lines) = log_lines {
        workers.start_unwatched("kernel-log", move |stop| {
            while !stop.is_asked() {
                lines.flush();
                std::thread::sleep(LOG_LINES_PAUSE);
            }
            Ok(())
        })?;
    }
    Ok(())
}
