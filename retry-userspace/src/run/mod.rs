//! Builds the daemon from its settings, runs it until the shutdown, and takes it down in the right order.

mod state;
mod translate;
mod workers;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use retry_common::abi;
use retry_common::decide::Policy;

use crate::admin::{self, Source};
use crate::beacon::BeaconSender;
use crate::counters::UserCounters;
use crate::datapath::{Datapath, DatapathError, EgressInterface, Events, Mode, Request};
use crate::engine::{Engine, Rules};
use crate::fabric::{Fabric, FabricError};
use crate::framelog::{self, Pages, Sizes};
use crate::ingress::fill::Fill;
use crate::ingress::joins::{JoinError, Joins};
use crate::nack::Server;
use crate::net::nack_socket::{self, NackSocket};
use crate::repair::Sender;
use crate::settings::{Settings, XdpMode};
use crate::telemetry::LogLevel;

use state::State;
use translate::{beacon_settings, fill_rules, groups, kernel_settings, route};
use workers::Workers;

/// Receive buffer of the NACK socket, bytes: 40,000 NACKs.
const NACK_BUFFER: usize = 4 << 20;

/// Why the daemon did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings do not fit this host.
    #[error(transparent)]
    Fabric(#[from] FabricError),
    /// XDP was asked for and cannot be had.
    #[error("-xdp {mode}: {source}")]
    Datapath {
        /// The mode asked for.
        mode: &'static str,
        /// Why not.
        source: DatapathError,
    },
    /// The frame log's memory cannot be had.
    #[error("-cache-memory: cannot map {bytes} bytes: {source}")]
    Memory {
        /// Bytes asked for.
        bytes: usize,
        /// The system's words.
        source: io::Error,
    },
    /// The groups cannot be joined.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The NACK socket cannot be opened.
    #[error("-nack-addr, -nack-port: {0}")]
    NackSocket(#[from] nack_socket::OpenError),
    /// The HTTP address cannot be bound.
    #[error("-metrics-addr {address}: {source}")]
    Admin {
        /// The address.
        address: SocketAddr,
        /// The system's words.
        source: io::Error,
    },
    /// The beacon socket cannot be opened.
    #[error("beacon: {0}")]
    Beacon(io::Error),
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// A worker ended before the shutdown.
    #[error("{worker} stopped: {why}")]
    Worker {
        /// Its name.
        worker: String,
        /// What it said.
        why: String,
    },
}

/// Runs the daemon until `shutdown` completes.
pub async fn run(
    settings: &Settings,
    log_level: LogLevel,
    shutdown: impl Future<Output = ()>,
) -> Result<(), StartError> {
    let fabric = Fabric::find(
        &settings.ingress.mc_iface,
        &settings.egress.ifaces,
        settings.nack.addr,
        settings.ingress.bind_source,
    )?;
    let hash_seed: u64 = rand::random();
    let abi = kernel_settings(settings, &fabric, hash_seed);
    let (datapath, pages, why) = open_datapath(settings, &fabric, abi)?;
    let (writer, log) = framelog::open(Arc::clone(&pages), hash_seed, settings.cache.max_keys);

    let counters = Arc::new(UserCounters::default());
    let socket = Arc::new(NackSocket::open(&nack_socket::Settings {
        address: fabric.nack_addr,
        port: settings.nack.port,
        receive_buffer: NACK_BUFFER,
        multicast_loop: settings.egress.multicast_loop,
    })?);
    let joins = Joins::open(fabric.ingress.index, settings.ingress.listen_port, &groups(settings))?;
    let server = Arc::new(Server {
        engine: Engine::new(
            Rules {
                policy: Policy::new(abi.flags),
                limits: abi.limits,
                hold_down: abi.hold_down,
                limit_entries: settings.limits.table_entries,
            },
            log.clone(),
            Arc::clone(&counters),
        ),
        sender: Sender::new(Arc::clone(&socket), route(settings, &fabric), log, Arc::clone(&counters)),
        counters: Arc::clone(&counters),
    });
    let fill = Arc::new(Fill {
        rules: fill_rules(settings, &fabric),
        writer: Arc::new(Mutex::new(writer)),
        counters: Arc::clone(&counters),
    });

    let workers = Workers::default();
    let state = Arc::new(State {
        counters,
        writer: Arc::clone(&fill.writer),
        mode: datapath.as_ref().map_or("off", |(_, mode)| mode_name(*mode)),
        reason: why,
        datapath: Mutex::new(datapath.map(|(datapath, _)| datapath)),
        adverts_sent: AtomicU64::new(0),
        workers_ready: Arc::clone(&workers.ready),
        workers_total: AtomicUsize::new(0),
        draining: AtomicBool::new(false),
    });
    let events = state.datapath().as_mut().and_then(Datapath::take_events);
    let result =
        serve(settings, &fabric, &state, workers, Parts { server, socket, fill, joins, events }, log_level, shutdown)
            .await;
    // The program goes first: from here on nothing is answered from a log that nobody fills.
    drop(state.datapath().take());
    result
}

/// What the workers work on.
struct Parts {
    server: Arc<Server>,
    socket: Arc<NackSocket>,
    fill: Arc<Fill>,
    joins: Joins,
    events: Option<Events>,
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
    let Parts { server, socket, fill, joins, events } = parts;
    let listener = tokio::net::TcpListener::bind(settings.admin.metrics_addr)
        .await
        .map_err(|source| StartError::Admin { address: settings.admin.metrics_addr, source })?;
    let beacon = if settings.beacon.enabled {
        beacon_settings(settings, fabric)
            .map(|beacon| BeaconSender::open(&beacon).map_err(StartError::Beacon))
            .transpose()?
    } else {
        None
    };

    let filling = Arc::clone(&fill);
    workers.start("ingress", move |stop| filling.run(&joins, stop))?;
    for number in 0..settings.nack.workers {
        let (server, socket) = (Arc::clone(&server), Arc::clone(&socket));
        workers.start(&format!("nack-{number}"), move |stop| server.serve_socket(&socket, stop))?;
    }
    if let Some(mut events) = events {
        workers.start("events", move |stop| server.serve_events(&mut events, stop))?;
    }
    state.workers_total.store(workers.threads.len(), Ordering::Relaxed);

    if let Some(mut lines) =
        settings.telemetry.debug.then(|| state.datapath().as_mut().and_then(Datapath::log_lines)).flatten()
    {
        workers.start("kernel-log", move |stop| {
            while !stop.load(Ordering::Relaxed) {
                lines.flush();
                std::thread::sleep(Duration::from_millis(100));
            }
            Ok(())
        })?;
    }

    let source: Arc<dyn Source> = Arc::clone(state) as Arc<dyn Source>;
    let http = axum::serve(listener, admin::router(source, log_level.clone()));
    let http = tokio::spawn(async move { http.await });
    tracing::info!(
        nack = %socket.local_addr(),
        ingress = %fabric.ingress.name,
        groups = groups(settings).len(),
        metrics = %settings.admin.metrics_addr,
        "serving"
    );

    tokio::pin!(shutdown);
    let mut lease = tokio::time::interval(settings.xdp.lease / 4);
    let mut sweep = tokio::time::interval(Duration::from_secs(1));
    let mut announce = tokio::time::interval(settings.beacon.interval);
    let mut hangups =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()).map_err(StartError::Thread)?;
    let ended = loop {
        tokio::select! {
            () = &mut shutdown => break Ok(()),
            _ = lease.tick() => state.renew_lease(settings.xdp.lease),
            _ = sweep.tick() => {
                fill.sweep();
                if let Some(failed) = workers.failed() {
                    break Err(failed);
                }
            }
            _ = announce.tick(), if beacon.is_some() => announce_now(beacon.as_ref(), state, false),
            _ = hangups.recv() => log_level.toggle_debug(),
        }
    };
    state.draining.store(true, Ordering::Relaxed);
    announce_now(beacon.as_ref(), state, true);
    drop(state.datapath().take());
    workers.stop();
    http.abort();
    ended
}

fn announce_now(beacon: Option<&BeaconSender>, state: &State, draining: bool) {
    match beacon.map(|beacon| beacon.send(draining)) {
        Some(Ok(sent)) => {
            state.adverts_sent.fetch_add(u64::try_from(sent).unwrap_or(0), Ordering::Relaxed);
        }
        Some(Err(error)) => tracing::warn!(%error, "a beacon did not leave"),
        None => {}
    }
}

/// The kernel side as asked for, or plain memory, and the reason for what it is.
#[expect(clippy::type_complexity, reason = "three things that only `run` takes apart")]
fn open_datapath(
    settings: &Settings,
    fabric: &Fabric,
    abi: abi::Settings,
) -> Result<(Option<(Datapath, Mode)>, Arc<Pages>, String), StartError> {
    let sizes = Sizes::new(settings.cache.memory, settings.cache.memory_long);
    let egress: Vec<EgressInterface> = fabric
        .egress
        .iter()
        .map(|egress| EgressInterface {
            ifindex: egress.interface.index,
            egress: abi::Egress {
                source: egress.source.octets(),
                mac: egress.interface.mac.unwrap_or_default(),
                reserved: [0; 2],
            },
        })
        .collect();
    let plain =
        || Pages::plain(sizes).map(Arc::new).map_err(|source| StartError::Memory { bytes: sizes.ring_len(), source });
    let (mode, asked) = match settings.xdp.mode {
        XdpMode::Off => {
            tracing::info!(xdp = "off", reason = "-xdp off", "the daemon's socket answers NACKs");
            return Ok((None, plain()?, "-xdp off".to_owned()));
        }
        XdpMode::Native => (Mode::Native, "native"),
        XdpMode::Skb => (Mode::Skb, "skb"),
        XdpMode::Auto => (Mode::Native, "auto"),
    };
    let interfaces = fabric.attach_to();
    let request = Request {
        mode,
        bpffs: &settings.xdp.bpffs,
        fabric: &fabric.ingress.name,
        interfaces: &interfaces,
        egress: &egress,
        sizes,
        limit_entries: settings.limits.table_entries,
        settings: abi,
        debug: settings.telemetry.debug,
    };
    match Datapath::open(&request) {
        Ok(datapath) => {
            tracing::info!(xdp = mode_name(mode), reason = format!("-xdp {asked}"), "the kernel answers NACKs");
            let pages = datapath.pages();
            Ok((Some((datapath, mode)), pages, format!("-xdp {asked}")))
        }
        Err(error) if settings.xdp.mode == XdpMode::Auto => {
            tracing::warn!(xdp = "off", reason = %error, "the daemon's socket answers NACKs");
            Ok((None, plain()?, error.to_string()))
        }
        Err(source) => Err(StartError::Datapath { mode: asked, source }),
    }
}

const fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Native => "native",
        Mode::Skb => "skb",
    }
}
