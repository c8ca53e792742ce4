//! Opens all parts and connects them. Tasks of the parts may run from here on; of the data path no thread does.

use std::collections::BTreeSet;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender as Channel, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use retry_common::abi;
use retry_common::counter::Counter;
use retry_common::key::FrameKey;
use tokio::runtime::Handle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::StartError;
use super::handover::{self, OldLog, Opened};
use super::kernel::Kernel;
use super::management::Management;
use super::memory;
use super::reload::{Reached, Reload};
use super::state::{Observed, State};
use super::workers::Workers;
use crate::acl::{self, Acl};
use crate::beacon::registry::{Endpoint, SharedRegistry};
use crate::clock::{monotonic_ns, nanoseconds};
use crate::counters::{SourceCounts, UserCounters};
use crate::datapath::{DrawnNacks, Events, KernelFill, KernelKnown, KernelSources, LogLines, kernel_settings};
use crate::dedup;
use crate::engine::{self, Engine, GroupLimit};
use crate::fabric::{Fabric, Names};
use crate::fdstore::{self, Found};
use crate::feed::Feed;
use crate::framelog::{Log, Writer};
use crate::ingress::beacon_listener::{self, BeaconListener};
use crate::ingress::fill::{self, Fill, OnNumber, OnStored};
use crate::ingress::joins::JoinError;
use crate::ingress::source_discovery::{self, Control};
use crate::ingress::subscription::{self, OnJoined, Subscription};
use crate::ingress::tee::{self, TeeSocket};
use crate::latency::UserLatency;
use crate::limits::{AddressTable, ByteTables, GroupTable, OnChange, Review};
use crate::metrics::Source;
use crate::nack::pending::{Backends, Pending, Reply};
use crate::nack::{self, Server};
use crate::net::nack_socket::{self, NackSocket};
use crate::net::neighbours::Gate;
use crate::recovery::tails::Tails;
use crate::recovery::{self, Claims, Job, NoClaims, Recovery};
use crate::repair::{self, Held, OnMulticast, Sender};
use crate::settings::Settings;
use crate::store::{self, Store};
use crate::talkers::Talkers;
use crate::telemetry::otlp::{self, Exporter};
use crate::telemetry::trace::NackTracer;
use crate::telemetry::{self, LogLevel};

/// All parts.
pub(super) struct Built {
    pub(super) parts: Parts,
    pub(super) kept: Kept,
}

/// What is handed on, to be started.
pub(super) struct Parts {
    pub(super) fabric: Fabric,
    pub(super) state: Arc<State>,
    pub(super) workers: Workers,
    pub(super) work: Work,
    pub(super) management: Management,
    pub(super) outlives: Outlives,
    /// Ends the tasks.
    pub(super) cancel: CancellationToken,
}

/// What outlives this daemon, and what an earlier one has left.
pub(super) struct Outlives {
    pub(super) config: fdstore::Config,
    pub(super) found: Found,
}

/// What the threads work on.
pub(super) struct Work {
    pub(super) server: Arc<Server>,
    pub(super) socket: Arc<NackSocket>,
    pub(super) gate: Arc<Gate<Held>>,
    pub(super) fill: Arc<Fill>,
    /// One for each thread that receives.
    pub(super) joins: Vec<Subscription>,
    pub(super) beacons: BeaconListener,
    pub(super) tee: Option<TeeSocket>,
    pub(super) known: Review,
    pub(super) kernel_fill: Option<KernelFill>,
    pub(super) events: Option<Events>,
    pub(super) drawn: Option<DrawnNacks>,
    pub(super) log_lines: Option<LogLines>,
    pub(super) replies: Receiver<Reply>,
    /// A log to be read over to its end once this daemon goes live.
    pub(super) old_log: Option<OldLog>,
}

/// What ends last, whatever has been started.
pub(super) struct Kept {
    pub(super) state: Arc<State>,
    pub(super) exporter: Option<Exporter>,
    /// However the daemon ends, the tasks end with it.
    pub(super) _cancel: DropGuard,
}

/// Opens all parts in their order: what may be refused first, then what is attached, then what is joined. Gives up where it
/// takes long, with an error, once it is `told`.
pub(super) fn build(settings: &Settings, log_level: &LogLevel, told: &CancellationToken) -> Result<Built, StartError> {
    memory::check(settings)?;
    if let Some(directory) = &settings.proxy.state_dir {
        recovery::check_directory(directory)?;
    }
    let fabric = Fabric::find(&Names::from(settings))?;
    let kept = fdstore::Config::from(settings, &fabric);
    let mut found = Found::look(&kept);
    let socket = nack_socket::Config::from(settings, fabric.nack_addr);
    let (socket, stale) = nack_socket(&socket, &kept, &mut found)?;
    let socket = Arc::new(socket);
    let tee = tee::Config::from(settings).map(TeeSocket::open).transpose()?;
    let hash_seed: u64 = rand::random();
    let mut answers = kernel_settings(settings, &fabric, hash_seed);
    let kernel = Kernel::open(settings, &fabric, answers, told)?;
    // What an earlier daemon left was hashed with its seed.
    answers.hash_seed = kernel.hash_seed;
    let hash_seed = kernel.hash_seed;
    let (counters, cancel) = (Arc::new(kernel.counters), CancellationToken::new());
    let latency = Arc::new(kernel.latency.switched(settings.telemetry.latency_histograms));
    let acl = Arc::new(Acl::new(kernel.acl, settings.acl.hop_limit_min));
    acl.set_source(acl::Source::from(settings));
    // Before anything is answered: by the socket, or by this daemon's program in the place of an earlier one's.
    let acl_read = acl::load(&acl, &counters)?;
    let Opened { writer, log, start, mut old } = kernel.log;
    start.count(&counters);
    counters.add(Counter::NackStale, stale);
    let _cancel = cancel.clone().drop_guard();
    let claims_per_asker = Arc::new(AtomicBool::new(!settings.repair.multicast));
    let common = Common { settings, fabric, log, counters, latency, acl, claims_per_asker, cancel };

    let gate = Arc::new(Gate::new().map_err(nack_socket::OpenError::Setup)?);
    let (data_sources, wanted) = channel();
    let control = Arc::new(Control::new(source_discovery::Config::from(settings), common.counters()));
    let joins = common.data_groups(&control, wanted, kernel.sources)?;

    let registry = Arc::new(SharedRegistry::new(&settings.telemetry.instance, common.counters()));
    let store = common.store()?;
    let (reply, replies) = channel();
    let tails = settings.proxy.enabled.then(|| Arc::new(Tails::new(hash_seed)));
    let recovery = common.recovery(store.as_ref(), &registry, tails.as_ref(), reply.clone())?;
    let fill = common.fill(writer, kernel.stored, store.as_ref(), tails);
    handover::follow(&fill, store.as_ref());
    if let Some(old) = &mut old {
        tracing::info!(frames = old.read_over(&fill), "the frames of an earlier daemon are read over");
    }
    let most = settings.telemetry.top_talkers;
    let talkers = (most > 0).then(|| Arc::new(Talkers::new(most, common.counters())));
    let workers = Workers::default();
    let engine = common.engine(&answers, kernel.groups, kernel.bytes)?;
    let known = common.known(&engine, kernel.known);
    let engine = engine.knowing(known.known());
    let observed = Observed {
        counters: common.counters(),
        latency: common.latency(),
        talkers: talkers.clone(),
        sources: Arc::clone(&fill.sources),
        ages: Arc::clone(&fill.ages),
        lives: Arc::clone(&fill.lives),
        nack_socket: Arc::clone(&socket),
        writer: Arc::clone(&fill.writer),
        workers_ready: Arc::clone(&workers.ready),
        recovery: recovery.clone(),
        store: store.clone(),
        joined: joins.first().map(Subscription::status).unwrap_or_default(),
        tee_sockets: usize::from(tee.is_some()),
        known: known.known(),
        instance: settings.telemetry.instance.clone(),
        start,
    };
    let xdp = kernel.mode.name;
    let state = Arc::new(State::new(observed, kernel.datapath, kernel.mode));
    state.leave_from(&common.fabric);
    let exporter = otlp::Config::from(settings)
        .map(|config| Exporter::start(&config, Arc::clone(&state) as Arc<dyn Source>))
        .transpose()?;
    let beacons = common.beacon_groups(control, data_sources, &registry)?;
    let feed = common.feed();
    let server = Arc::new(Server {
        engine,
        sender: common.sender(&socket, &gate, &feed, store.as_ref()),
        pending: Pending::new(
            nack::Config::from(settings),
            Handle::current(),
            Arc::clone(&fill),
            reply,
            Backends { store: store.clone(), recovery: recovery.clone() },
        ),
        tracer: common.tracer(exporter.as_ref()),
        counters: common.counters(),
        feed,
        acl: Arc::clone(&common.acl),
        talkers,
    });

    let reached = Reached {
        state: Arc::clone(&state),
        server: Arc::clone(&server),
        lives: Arc::clone(&fill.lives),
        recovery: recovery.clone(),
        claims_per_asker: Arc::clone(&common.claims_per_asker),
        log_level: log_level.clone(),
        answers,
        http: OnceLock::new(),
        beacon: OnceLock::new(),
    };
    telemetry::inventory::tell(settings, &common.fabric, xdp);
    let management = Management {
        state: Arc::clone(&state),
        fill: Arc::clone(&fill),
        log: common.log.clone(),
        store,
        registry,
        reload: Arc::new(Reload::new(settings, reached)),
        instance: settings.telemetry.instance.clone(),
    };
    let work = Work {
        server,
        socket,
        gate,
        fill,
        joins,
        beacons,
        tee,
        known,
        kernel_fill: kernel.fill,
        events: kernel.events,
        drawn: kernel.drawn,
        log_lines: kernel.log_lines,
        replies,
        old_log: old,
    };
    tokio::spawn(acl::follow(Arc::clone(&common.acl), acl_read, common.counters(), common.cancel.clone()));
    let Common { fabric, cancel, .. } = common;
    let outlives = Outlives { config: kept, found };
    let kept = Kept { state: Arc::clone(&state), exporter, _cancel };
    Ok(Built { parts: Parts { fabric, state, workers, work, management, outlives, cancel }, kept })
}

/// The NACK socket, and how many datagrams had waited in it too long: that of an earlier daemon, where one was kept for this
/// address and port.
fn nack_socket(
    config: &nack_socket::Config,
    kept: &fdstore::Config,
    found: &mut Found,
) -> Result<(NackSocket, u64), nack_socket::OpenError> {
    let earlier = match found.nack_socket(config.wanted()) {
        Some(earlier) => earlier,
        None => match NackSocket::open(config) {
            Ok(new) => return Ok((new, 0)),
            Err(error) => found.nack_socket_elsewhere(kept, config.wanted()).ok_or(error)?,
        },
    };
    let socket = NackSocket::take_over(config, earlier)?;
    let stale = if found.is_stale() { socket.drop_queued()? } else { 0 };
    Ok((socket, stale))
}

/// What most parts are made with.
struct Common<'a> {
    settings: &'a Settings,
    fabric: Fabric,
    log: Log,
    counters: Arc<UserCounters>,
    latency: Arc<UserLatency>,
    acl: Arc<Acl>,
    /// Recoveries are claimed per listener: repairs are not multicast. It changes while the daemon runs.
    claims_per_asker: Arc<AtomicBool>,
    cancel: CancellationToken,
}

impl Common<'_> {
    fn counters(&self) -> Arc<UserCounters> {
        Arc::clone(&self.counters)
    }

    fn latency(&self) -> Arc<UserLatency> {
        Arc::clone(&self.latency)
    }

    /// The data groups, a share for each receiving thread. Sources that are known by address are joined at once.
    fn data_groups(
        &self,
        control: &Control,
        wanted: Receiver<BTreeSet<Ipv6Addr>>,
        kernel: Option<KernelSources>,
    ) -> Result<Vec<Subscription>, JoinError> {
        let Some(config) = subscription::Config::from(self.settings, &self.fabric) else {
            return Ok(Vec::new());
        };
        let tell = kernel.map(|mut kernel| -> OnJoined {
            Box::new(move |sources| {
                if let Err(error) = kernel.set(sources) {
                    tracing::error!(%error, "-fill: the kernel leaves frames of some sources to the daemon");
                }
            })
        });
        Subscription::open_shares(config, &control.wanted(), wanted, tell)
    }

    /// The beacon groups; from here on the task that finds sources tells both of them.
    fn beacon_groups(
        &self,
        control: Arc<Control>,
        data: Channel<BTreeSet<Ipv6Addr>>,
        registry: &Arc<SharedRegistry>,
    ) -> Result<BeaconListener, JoinError> {
        let (beacons, wanted) = channel();
        let (registry, acl) = (Arc::clone(registry), Arc::clone(&self.acl));
        let listener = BeaconListener::open(
            beacon_listener::Config::from(self.settings, &self.fabric),
            wanted,
            Box::new(move |bytes, from| registry.hear(bytes, from, |address| acl.names(address))),
            Arc::clone(&control),
            Arc::clone(&self.acl),
            self.counters(),
        )?;
        tokio::spawn(control.keep(data, beacons, self.cancel.clone()));
        Ok(listener)
    }

    /// The shared store, when there is a `-redis-addr`.
    fn store(&self) -> Result<Option<Store>, StartError> {
        let Some(config) = store::Config::from(self.settings) else {
            return Ok(None);
        };
        let log = self.log.clone();
        let heard = move |key: FrameKey, age: Duration| {
            log.repaired_by_another(&key, monotonic_ns().saturating_sub(nanoseconds(age)));
        };
        Ok(Some(Store::start(config, self.counters(), heard, self.cancel.clone())?))
    }

    /// Recovery from upstream, with `-proxy-enabled`.
    fn recovery(
        &self,
        store: Option<&Store>,
        registry: &Arc<SharedRegistry>,
        tails: Option<&Arc<Tails>>,
        reply: Channel<Reply>,
    ) -> Result<Option<Recovery>, StartError> {
        let (Some(config), Some(tails)) = (recovery::Config::from(self.settings, self.fabric.nack_addr), tails) else {
            return Ok(None);
        };
        let claims: Arc<dyn Claims> = match store {
            Some(store) => {
                Arc::new(StoreClaims { store: store.clone(), per_asker: Arc::clone(&self.claims_per_asker) })
            }
            None => Arc::new(NoClaims),
        };
        let (registry, acl, discovers) = (Arc::clone(registry), Arc::clone(&self.acl), config.proxy.discover);
        let discover = move || -> Vec<SocketAddrV6> {
            if !discovers {
                return Vec::new();
            }
            // One that drains is on its way out, and is asked for nothing new. An address that another host announces is asked only if
            // the operator has named it.
            let is_asked =
                |one: &&Endpoint| !one.is_draining() && (one.is_at_its_source() || acl.names(*one.nack.ip()));
            registry.endpoints().iter().filter(is_asked).map(|one| one.nack).collect()
        };
        let on_frame = move |recovered| {
            // At the end no thread takes replies any more.
            let _ = reply.send(Reply::Recovered(recovered));
        };
        let (discover, on_frame, tails) = (Arc::new(discover), Arc::new(on_frame), Arc::clone(tails));
        let (counters, cancel) = ((self.counters(), self.latency(), Arc::clone(&self.acl)), self.cancel.clone());
        Ok(Some(Recovery::start(config, counters, claims, discover, tails, on_frame, cancel)?))
    }

    /// What fills the log, and tells the store of new frames and recovery of their numbers.
    fn fill(
        &self,
        writer: Writer,
        stored: SourceCounts,
        store: Option<&Store>,
        tails: Option<Arc<Tails>>,
    ) -> Arc<Fill> {
        let config = fill::Config::from(self.settings, &self.fabric);
        let on_stored = store.cloned().map(|store| -> OnStored {
            Box::new(move |key, life_ms, bytes| store.write(key, Duration::from_millis(life_ms.into()), bytes))
        });
        let on_number =
            tails.map(|tails| -> OnNumber { Box::new(move |key, life_ms, now_ns| tails.stored(key, life_ms, now_ns)) });
        let fill = Fill::new(config, writer, self.counters(), on_stored);
        let fill = fill.measuring(self.latency()).counting_on(stored).telling_numbers(on_number);
        Arc::new(fill.admitting(Arc::clone(&self.acl)))
    }

    /// What tells those that watch.
    fn feed(&self) -> Arc<Feed> {
        let feed = Arc::new(Feed::new(self.counters()));
        if let Err(error) = feed.listen(&self.fabric.ingress.name, self.cancel.clone()) {
            tracing::warn!(%error, "retry-endpoint watch shows nothing of this daemon: the name of its socket is taken");
        }
        feed
    }

    /// What decides by the same values as the kernel program.
    fn engine(
        &self,
        answers: &abi::Settings,
        groups: Option<GroupTable>,
        bytes: Option<ByteTables>,
    ) -> Result<Engine, StartError> {
        let config = engine::Config::from(self.settings, answers);
        let groups = groups.map(|groups| -> Box<dyn GroupLimit> { Box::new(groups) });
        let engine = Engine::new(config, self.log.clone(), self.counters(), groups)
            .map_err(|source| StartError::Limits { entries: config.limit_entries, source })?
            .listing(Arc::clone(&self.acl));
        Ok(match bytes {
            Some(bytes) => engine.sharing(bytes),
            None => engine,
        })
    }

    /// What finds out which listeners are known; those of an earlier daemon still are.
    fn known(&self, engine: &Engine, kernel: Option<(AddressTable, KernelKnown)>) -> Review {
        let (tables, already, tell) = match kernel {
            None => (vec![engine.addresses()], Vec::new(), None),
            Some((addresses, mut kernel)) => {
                let already = kernel.listeners();
                let tell: OnChange = Box::new(move |change| kernel.take(change));
                (vec![addresses, engine.addresses()], already, Some(tell))
            }
        };
        Review::new(self.settings.limits.known_listeners, tables, already, tell, monotonic_ns())
    }

    /// What sends, and tells other instances of multicast repairs where they are told afterwards.
    fn sender(
        &self,
        socket: &Arc<NackSocket>,
        gate: &Arc<Gate<Held>>,
        feed: &Arc<Feed>,
        store: Option<&Store>,
    ) -> Sender {
        let config = repair::Config::from(self.settings, &self.fabric);
        let announcer = store.cloned().filter(|_| dedup::Config::from(self.settings).announces());
        let on_multicast = announcer.map(|store| -> OnMulticast { Box::new(move |key| store.announce(*key)) });
        let (socket, gate) = (Arc::clone(socket), Arc::clone(gate));
        Sender::new(config, socket, gate, self.log.clone(), self.counters(), Arc::clone(feed), on_multicast)
    }

    fn tracer(&self, exporter: Option<&Exporter>) -> NackTracer {
        exporter
            .map(|exporter| NackTracer::new(exporter.tracer(), self.settings.telemetry.otlp.sampling))
            .unwrap_or_default()
    }
}

/// Claims of recoveries in the shared store.
struct StoreClaims {
    store: Store,
    /// Nothing is multicast: what another instance recovers reaches only the listeners that asked it.
    per_asker: Arc<AtomicBool>,
}

impl StoreClaims {
    fn asker(&self, job: &Job) -> Option<Ipv6Addr> {
        self.per_asker.load(Ordering::Relaxed).then_some(*job.asker.ip())
    }
}

impl Claims for StoreClaims {
    fn claim<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, bool> {
        Box::pin(async { self.store.claim_recovery(&job.key, self.asker(job)).await.unwrap_or(true) })
    }

    fn release<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, ()> {
        Box::pin(self.store.release_recovery(&job.key, self.asker(job)))
    }
}
