//! Builds the daemon from its settings, runs it until the shutdown, and takes it down in the right order.

use std::collections::HashSet;
use std::future::Future;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use retry_common::abi::{self, setting_flag};
use retry_common::counter::Counters;
use retry_common::decide::Policy;
use retry_common::group::{self, Sharding};
use retry_common::holddown::HoldDown;
use retry_common::limit::{TokenBucket, Window};
use retry_common::wire::frame::Class;

use crate::admin::{self, Snapshot, Source};
use crate::beacon::{self, BeaconSender};
use crate::clock::monotonic_ns;
use crate::counters::UserCounters;
use crate::datapath::{Datapath, DatapathError, EgressInterface, Events, Mode, Request};
use crate::engine::{Engine, Rules};
use crate::fabric::{Fabric, FabricError};
use crate::framelog::{self, Pages, Sizes, Writer};
use crate::ingress::fill::{Fill, FillRules};
use crate::ingress::joins::{JoinError, Joins};
use crate::nack::Server;
use crate::net::multicast;
use crate::net::nack_socket::{self, NackSocket};
use crate::repair::{Route, Sender};
use crate::settings::{Settings, XdpMode};
use crate::telemetry::LogLevel;

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

fn kernel_settings(settings: &Settings, fabric: &Fabric, hash_seed: u64) -> abi::Settings {
    let sizes = Sizes::new(settings.cache.memory, settings.cache.memory_long);
    let here = fabric.egress.iter().any(|egress| egress.interface.index == fabric.nack.index);
    let flags = [
        (settings.repair.multicast, setting_flag::MULTICAST),
        (settings.repair.unicast, setting_flag::UNICAST),
        (settings.nack.suppress_ack, setting_flag::SUPPRESS_ACK),
        (settings.nack.suppress_miss, setting_flag::SUPPRESS_MISS),
        (settings.limits.throttle_response, setting_flag::THROTTLE_RESPONSE),
        // Such repairs go through the stack, which alone can loop them back.
        (settings.egress.multicast_loop, setting_flag::DAEMON_MULTICAST),
        (here, setting_flag::EGRESS_HERE),
        (settings.xdp.mode == XdpMode::Skb, setting_flag::DAEMON_FRAMES),
    ]
    .into_iter()
    .fold(0, |flags, (on, flag)| if on { flags | flag } else { flags });
    let limits = &settings.limits;
    abi::Settings {
        generation: 1,
        lease_until_ns: 0,
        hash_seed,
        limits: abi::Limits {
            address: TokenBucket::new(limits.ip_rate, limits.ip_burst),
            group: TokenBucket::new(limits.group_rate, limits.group_burst),
            sequence: Window::new(limits.sequence_max, nanoseconds(limits.sequence_window)),
            chain: Window::new(limits.chain_rate, nanoseconds(limits.chain_window)),
        },
        hold_down: HoldDown { ours_ns: nanoseconds(settings.repair.holddown), others_ns: 0 },
        layout: abi::LAYOUT,
        flags,
        nack_ifindex: fabric.nack.index,
        bucket_mask: sizes.buckets - 1,
        hold_down_mask: sizes.hold_down_words - 1,
        max_frame: fabric.max_frame(),
        nack_addr: fabric.nack_addr.octets(),
        nack_port: settings.nack.port.to_be_bytes(),
        egress_port: settings.egress.port.to_be_bytes(),
        group_prefix: settings.ingress.group_prefix.to_be_bytes(),
        group_id: settings.ingress.group_id.to_be_bytes(),
        unicast_hop_limit: fabric.nack.unicast_hop_limit().unwrap_or(64),
        multicast_hop_limit: settings.egress.hop_limit,
        reserved: [0; 6],
    }
}

fn groups(settings: &Settings) -> Vec<Ipv6Addr> {
    let ingress = &settings.ingress;
    group::joined(ingress.shard_bits, ingress.subtree_data, ingress.beef)
        .map(|index| Ipv6Addr::from(group::address(ingress.group_prefix, ingress.group_id, index)))
        .collect()
}

fn route(settings: &Settings, fabric: &Fabric) -> Route {
    Route {
        group_prefix: settings.ingress.group_prefix,
        group_id: settings.ingress.group_id,
        egress: fabric
            .egress
            .iter()
            .map(|egress| multicast::Egress {
                interface: egress.interface.index,
                source: egress.source,
                port: settings.egress.port,
                hop_limit: settings.egress.hop_limit,
            })
            .collect(),
    }
}

fn beacon_settings(settings: &Settings, fabric: &Fabric) -> Option<beacon::Settings> {
    let first = fabric.egress.first()?;
    Some(beacon::Settings {
        nack_address: fabric.nack_addr,
        nack_port: settings.nack.port,
        tier: settings.beacon.tier,
        preference: settings.beacon.preference,
        interval: settings.beacon.interval,
        scope: settings.beacon.scope,
        group_id: settings.ingress.group_id,
        multicast: settings.repair.multicast,
        unicast: settings.repair.unicast,
        draining: settings.beacon.draining,
        has_parent: false,
        instance: settings.telemetry.instance.clone(),
        interface: first.interface.index,
        source: first.source,
        hop_limit: settings.egress.hop_limit,
    })
}

fn fill_rules(settings: &Settings, fabric: &Fabric) -> FillRules {
    let life_ms = |class| u32::try_from(settings.cache.ttl(class).as_millis()).unwrap_or(u32::MAX);
    FillRules {
        sharding: Sharding { shard: settings.ingress.shard_bits, beef: settings.ingress.beef.unwrap_or_default() },
        life_ms: Class::ALL.map(life_ms),
        kernel_max: usize::try_from(fabric.max_frame()).unwrap_or(0),
        own_sources: fabric.egress.iter().map(|egress| egress.source).collect::<HashSet<_>>(),
        own_port: settings.nack.port,
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What HTTP shows and the timers touch.
struct State {
    counters: Arc<UserCounters>,
    writer: Arc<Mutex<Writer>>,
    datapath: Mutex<Option<Datapath>>,
    mode: &'static str,
    reason: String,
    adverts_sent: AtomicU64,
    workers_ready: Arc<AtomicUsize>,
    workers_total: AtomicUsize,
    draining: AtomicBool,
}

impl State {
    fn datapath(&self) -> MutexGuard<'_, Option<Datapath>> {
        self.datapath.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn renew_lease(&self, lease: Duration) {
        if let Some(datapath) = self.datapath().as_ref() {
            datapath.renew_lease(monotonic_ns().saturating_add(nanoseconds(lease)));
        }
    }
}

impl Source for State {
    fn snapshot(&self) -> Snapshot {
        let kernel = match self.datapath().as_ref().map(Datapath::counters) {
            Some(Ok(counters)) => counters,
            Some(Err(error)) => {
                tracing::warn!(%error, "the kernel's counters cannot be read");
                Counters::default()
            }
            None => Counters::default(),
        };
        let (frames, lanes) = {
            let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
            (writer.live(), writer.lane_use(monotonic_ns()))
        };
        Snapshot {
            kernel,
            user: self.counters.snapshot(),
            frames,
            lanes,
            adverts_sent: self.adverts_sent.load(Ordering::Relaxed),
            xdp_mode: self.mode,
            xdp_reason: self.reason.clone(),
            workers_ready: self.workers_ready.load(Ordering::Relaxed),
            workers_total: self.workers_total.load(Ordering::Relaxed),
            draining: self.draining.load(Ordering::Relaxed),
        }
    }
}

/// The threads of the data path.
#[derive(Default)]
struct Workers {
    stop: Arc<AtomicBool>,
    ready: Arc<AtomicUsize>,
    threads: Vec<(String, JoinHandle<io::Result<()>>)>,
}

impl Workers {
    fn start(
        &mut self,
        name: &str,
        work: impl FnOnce(&AtomicBool) -> io::Result<()> + Send + 'static,
    ) -> Result<(), StartError> {
        let (stop, ready) = (Arc::clone(&self.stop), Arc::clone(&self.ready));
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                ready.fetch_add(1, Ordering::Relaxed);
                let result = work(&stop);
                ready.fetch_sub(1, Ordering::Relaxed);
                result
            })
            .map_err(StartError::Thread)?;
        self.threads.push((name.to_owned(), thread));
        Ok(())
    }

    /// The first worker that ended although nobody asked it to.
    fn failed(&mut self) -> Option<StartError> {
        let place = self.threads.iter().position(|(_, thread)| thread.is_finished())?;
        let (worker, thread) = self.threads.swap_remove(place);
        let why = match thread.join() {
            Ok(Ok(())) => "it had nothing left to do".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it panicked".to_owned(),
        };
        Some(StartError::Worker { worker, why })
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for (worker, thread) in self.threads {
            if !matches!(thread.join(), Ok(Ok(()))) {
                tracing::warn!(worker, "did not end well");
            }
        }
    }
}
