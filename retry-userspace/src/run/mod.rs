//! Builds the daemon from its settings, runs it until the shutdown, and takes it down in the right order.

mod backends;
mod error;
mod fill_switch;
mod follow;
mod kernel;
mod management;
mod state;
mod subscriptions;
#[cfg(test)]
mod tests;
mod workers;

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::signal::unix::Signal;
use tokio::sync::Notify;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, manage};
use crate::beacon::registry::SharedRegistry;
use crate::beacon::{self, BeaconSender};
use crate::counters::UserCounters;
use crate::datapath::{Events, KernelFill, LogLines, kernel_settings};
use crate::dedup;
use crate::engine::{self, Engine, GroupLimit};
use crate::fabric::{Fabric, Names};
use crate::framelog;
use crate::ingress::beacon_listener::BeaconListener;
use crate::ingress::fill::{self, Fill, OnStored};
use crate::ingress::source_discovery::{self, Control};
use crate::ingress::subscription::{Subscription, data_groups};
use crate::ingress::tee::{self, TeeSocket};
use crate::metrics::Source;
use crate::nack::pending::{Backends, Pending, Reply};
use crate::nack::{self, Server};
use crate::net::nack_socket::{self, NackSocket};
use crate::net::neighbours::Gate;
use crate::repair::{self, Held, OnMulticast, Sender};
use crate::settings::Settings;
use crate::telemetry::otlp::{self, Exporter};
use crate::telemetry::trace::NackTracer;
use crate::telemetry::{self, LogLevel};

pub use error::StartError;
use fill_switch::{FillSwitch, NackPortWatch};
use follow::{Deliveries, Follower, Tries};
use kernel::Kernel;
use management::Management;
use state::State;
use workers::Workers;

/// How long the threads of the data path may take to end.
const WORKERS_END: Duration = Duration::from_secs(2);

/// Runs the daemon until `shutdown` completes.
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
    let hangups = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()).map_err(StartError::Thread)?;
    let fabric = Fabric::find(&Names::from(settings))?;
    let hash_seed: u64 = rand::random();
    let abi = kernel_settings(settings, &fabric, hash_seed);
    let kernel = Kernel::open(settings, &fabric, abi)?;
    let (writer, log) = framelog::open(kernel.pages, hash_seed, settings.cache.max_keys);

    let counters = Arc::new(UserCounters::default());
    let cancel = CancellationToken::new();
    // However this ends, the tasks end with it.
    let _cancel = cancel.clone().drop_guard();
    let socket = Arc::new(NackSocket::open(&nack_socket::Config::from(settings, fabric.nack_addr))?);
    let gate = Arc::new(Gate::new().map_err(nack_socket::OpenError::Setup)?);
    let (data_sources, wanted) = std::sync::mpsc::channel();
    let control = Arc::new(Control::new(source_discovery::Config::from(settings), Arc::clone(&counters)));
    let joins = subscriptions::data(settings, &fabric, &control, wanted, kernel.sources)?;
    let tee = tee::Config::from(settings).map(TeeSocket::open).transpose()?;

    let registry = Arc::new(SharedRegistry::new(&settings.telemetry.instance, Arc::clone(&counters)));
    let store = backends::store(settings, &counters, &log, &cancel)?;
    let (replies, answers) = std::sync::mpsc::channel();
    let recovery = backends::recovery(settings, &counters, store.as_ref(), &registry, replies.clone(), &cancel)?;
    let on_stored = store.clone().map(|store| -> OnStored {
        Box::new(move |key, life_ms, bytes| store.write(key, Duration::from_millis(life_ms.into()), bytes))
    });
    let fill = Fill::new(fill::Config::from(settings, &fabric), writer, Arc::clone(&counters), on_stored);
    let fill = Arc::new(fill);
    see(&fill);
    let workers = Workers::default();
    let state = Arc::new(State {
        counters: Arc::clone(&counters),
        writer: Arc::clone(&fill.writer),
        log_use: Mutex::default(),
        xdp: Mutex::new((kernel.mode, kernel.why)),
        problems: Mutex::default(),
        warnings: Mutex::default(),
        last_delivered: Mutex::default(),
        ledger: Mutex::default(),
        announce: Notify::new(),
        datapath: Mutex::new(kernel.datapath),
        last_kernel: Mutex::default(),
        adverts_sent: AtomicU64::new(0),
        workers_ready: Arc::clone(&workers.ready),
        workers_total: AtomicUsize::new(0),
        draining: AtomicBool::new(false),
        drain_ordered: Notify::new(),
        recovery: recovery.clone(),
        store: store.clone(),
        joined: joins.first().map(Subscription::status).unwrap_or_default(),
        tee_sockets: usize::from(tee.is_some()),
        instance: settings.telemetry.instance.clone(),
    });
    let exporter = otlp::Config::from(settings)
        .map(|config| Exporter::start(&config, Arc::clone(&state) as Arc<dyn Source>))
        .transpose()?;
    let tracer = exporter
        .as_ref()
        .map(|exporter| NackTracer::new(exporter.tracer(), settings.telemetry.otlp.sampling))
        .unwrap_or_default();
    let beacons =
        subscriptions::start_control(settings, &fabric, control, data_sources, &registry, &counters, &cancel)?;
    let dedup = dedup::Config::from(settings);
    let announcer = store.clone().filter(|_| dedup.announces());
    let server = Arc::new(Server {
        engine: Engine::new(
            engine::Config::from(settings, &abi),
            log.clone(),
            Arc::clone(&counters),
            kernel.groups.map(|groups| -> Box<dyn GroupLimit> { Box::new(groups) }),
        )
        .map_err(|source| StartError::Limits { entries: settings.limits.table_entries, source })?,
        sender: Sender::new(
            repair::Config::from(settings, &fabric),
            Arc::clone(&socket),
            Arc::clone(&gate),
            log.clone(),
            Arc::clone(&counters),
            announcer.map(|store| -> OnMulticast { Box::new(move |key| store.announce(*key)) }),
        ),
        pending: Pending::new(
            nack::Config::from(settings),
            Handle::current(),
            Arc::clone(&fill),
            replies,
            Backends { store: store.clone(), recovery },
        ),
        tracer,
        counters,
    });

    telemetry::inventory::tell(settings, &fabric, state.mode().0);
    let management = Management {
        state: Arc::clone(&state),
        fill: Arc::clone(&fill),
        log,
        store,
        registry,
        described: settings.describe().to_vec(),
        instance: settings.telemetry.instance.clone(),
    };
    let parts = Parts {
        server,
        socket,
        gate,
        fill,
        joins,
        beacons,
        tee,
        kernel_fill: kernel.fill,
        events: kernel.events,
        log_lines: kernel.log_lines,
        answers,
        hangups,
        management,
        cancel,
    };
    let result = serve(settings, &fabric, &state, workers, parts, log_level, shutdown).await;
    // The program goes first: from here on nothing is answered from a log that is not filled.
    state.end_datapath();
    if let Some(exporter) = exporter
        && let Err(error) = tokio::task::spawn_blocking(move || exporter.shutdown()).await
    {
        tracing::warn!(%error, "the exporter did not end well");
    }
    result
}

/// What the workers work on.
struct Parts {
    server: Arc<Server>,
    socket: Arc<NackSocket>,
    gate: Arc<Gate<Held>>,
    fill: Arc<Fill>,
    /// One for each thread that receives.
    joins: Vec<Subscription>,
    beacons: BeaconListener,
    tee: Option<TeeSocket>,
    kernel_fill: Option<KernelFill>,
    events: Option<Events>,
    log_lines: Option<LogLines>,
    answers: Receiver<Reply>,
    hangups: Signal,
    management: Management,
    cancel: CancellationToken,
}

async fn serve(
    settings: &Settings,
    fabric: &Fabric,
    state: &Arc<State>,
    mut workers: Workers,
    parts: Parts,
    log_level: LogLevel,
    shutdown: impl Future<Output = ()>,
) -> Result<(), StartError> {
    let Parts {
        server,
        socket,
        gate,
        fill,
        joins,
        beacons,
        tee,
        kernel_fill,
        events,
        log_lines,
        answers,
        mut hangups,
        management,
        cancel,
    } = parts;
    let metrics = admin::Config::from(settings);
    let listener = admin::Listener::bind(metrics)
        .await
        .map_err(|source| StartError::Admin { address: metrics.address, source })?;
    let managed = match manage::Config::from(settings) {
        Some(config) => {
            let address = config.address;
            let bound = manage::Listener::bind(config).await;
            Some(bound.map_err(|source| StartError::Management { address, source })?)
        }
        None => None,
    };
    let beacon =
        beacon::Config::from(settings, fabric).map(BeaconSender::open).transpose().map_err(StartError::Beacon)?;
    let beacon = beacon.map(Arc::new);

    let follower = Follower {
        settings: settings.clone(),
        state: Arc::clone(state),
        server: Arc::clone(&server),
        beacon: beacon.clone(),
        data: joins.first().map(Subscription::rejoin),
        beacons: beacons.subscription.rejoin(),
        stands: Some(fabric.clone()),
        names: Names {
            ingress: fabric.ingress.name.clone(),
            egress: settings.egress.ifaces.clone(),
            nack_addr: Some(fabric.nack_addr),
            bind_source: settings.ingress.bind_source,
        },
        joined_on: fabric.ingress.index,
        tries: Tries::default(),
        adapted: true,
        own: BTreeSet::new(),
        announcements: 0,
        delivery: Deliveries::default(),
    };
    for (number, mut joins) in joins.into_iter().enumerate() {
        let filling = Arc::clone(&fill);
        workers.start(&format!("ingress-{number}"), move |stop| filling.run(&mut joins, stop))?;
    }
    let mut fill_switch =
        kernel_fill.map(|kernel| FillSwitch::new(kernel, settings.xdp.fill, settings.ingress.listen_port));
    if let Some(switch) = &mut fill_switch {
        switch.review();
        let filling = Arc::clone(&fill);
        workers.start("follow", move |stop| {
            filling.run_follow(stop);
            Ok(())
        })?;
    }
    let nack_port = NackPortWatch::new(socket.local_addr(), Arc::clone(&state.counters));
    workers.start("ports", move |stop| {
        fill_switch::watch(nack_port, fill_switch, stop);
        Ok(())
    })?;
    let (sweeping, swept) = (Arc::clone(&fill), Arc::clone(state));
    workers.start("sweep", move |stop| {
        sweeping.run_sweep(stop, |seen| swept.saw_log(seen));
        Ok(())
    })?;
    workers.start("beacons", move |stop| beacons.run(stop))?;
    if let Some(tee) = tee {
        let filling = Arc::clone(&fill);
        workers.start("tee", move |stop| filling.run_tee(&tee, stop))?;
    }
    for number in 0..settings.nack.workers {
        let (server, socket) = (Arc::clone(&server), Arc::clone(&socket));
        workers.start(&format!("nack-{number}"), move |stop| server.serve_socket(&socket, stop))?;
    }
    let holding = Arc::clone(&server);
    workers.start("neighbours", move |stop| holding.serve_held(&gate, stop))?;
    if let Some(mut events) = events {
        let server = Arc::clone(&server);
        workers.start("events", move |stop| server.serve_events(&mut events, stop))?;
    }
    workers.start("replies", move |stop| {
        server.serve_replies(&answers, stop);
        Ok(())
    })?;
    state.workers_total.store(workers.threads.len(), Ordering::Relaxed);

    if let Some(mut lines) = log_lines {
        workers.start("kernel-log", move |stop| {
            while !stop.load(Ordering::Relaxed) {
                lines.flush();
                std::thread::sleep(Duration::from_millis(100));
            }
            Ok(())
        })?;
    }

    // Before `/readyz` says ready: without a lease the kernel passes NACKs on.
    state.renew_lease(settings.xdp.lease);
    // The first look is over before the daemon says that it is ready.
    let follower = follower.look_once().await;
    tokio::spawn(follower.run(cancel.clone()));
    let http = listener.serve(Arc::clone(state) as Arc<dyn Source>, log_level.clone());
    let manage_until = CancellationToken::new();
    let managed = managed.map(|listener| listener.serve(Arc::new(management), manage_until.clone()));
    tracing::info!(
        nack = %socket.local_addr(),
        ingress = %fabric.ingress.name,
        groups = data_groups(settings).len(),
        metrics = %settings.admin.metrics_addr,
        "serving"
    );

    tokio::pin!(shutdown);
    let mut lease = tokio::time::interval(settings.xdp.lease / 4);
    let mut review = tokio::time::interval(Duration::from_secs(1));
    let mut announce = tokio::time::interval(settings.beacon.interval);
    // None until the shutdown begins, then when it ends.
    let mut drained: Option<Pin<Box<Sleep>>> = None;
    let mut again = Box::pin(crate::shutdown::signal());
    let ended = loop {
        tokio::select! {
            () = &mut shutdown, if drained.is_none() => {
                state.drain();
                announce_now(beacon.as_deref(), state);
                if settings.admin.drain_timeout.is_zero() {
                    break Ok(());
                }
                tracing::info!(timeout = ?settings.admin.drain_timeout, "draining");
                // A signal from here on means: at once. The one that began this is not heard again.
                again = Box::pin(crate::shutdown::signal());
                drained = Some(Box::pin(tokio::time::sleep(settings.admin.drain_timeout)));
            }
            () = async { match drained.as_mut() { Some(sleep) => sleep.await, None => std::future::pending().await } } => break Ok(()),
            () = &mut again, if drained.is_some() => break Ok(()),
            () = state.announce.notified() => announce_now(beacon.as_deref(), state),
            () = state.drain_ordered.notified() => announce_now(beacon.as_deref(), state),
            _ = lease.tick() => state.renew_lease(settings.xdp.lease),
            _ = review.tick() => {
                if let Some(failed) = workers.failed() {
                    break Err(failed);
                }
            }
            _ = announce.tick(), if beacon.is_some() => announce_now(beacon.as_deref(), state),
            _ = hangups.recv() => log_level.toggle_debug(),
        }
    };
    manage_until.cancel();
    if let Some(managed) = managed {
        let _ = managed.await;
    }
    state.end_datapath();
    // The workers end on threads of their own; what they still wait for is done by tasks of this runtime.
    let stopped = tokio::task::spawn_blocking(move || workers.stop(WORKERS_END)).await;
    if let Err(error) = stopped {
        tracing::warn!(%error, "the workers did not end well");
    }
    cancel.cancel();
    http.abort();
    ended
}

fn announce_now(beacon: Option<&BeaconSender>, state: &State) {
    match beacon.map(|beacon| beacon.send(state.is_draining())) {
        Some(Ok(sent)) => {
            state.adverts_sent.fetch_add(u64::try_from(sent).unwrap_or(0), Ordering::Relaxed);
        }
        Some(Err(error)) => tracing::warn!(%error, "a beacon did not leave"),
        None => {}
    }
}
