//! The real XDP program, loaded and attached as the daemon does it, with a frame log that the caller fills.
//!
//! Nothing here needs more than `ip link`: a test can run on a machine that has only busybox.
//!
//! Longer than most files: what is loaded, what it is told and what it says are one value, whose parts tests take in any order.

use std::{
    collections::BTreeSet,
    net::{Ipv6Addr, SocketAddrV6},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use aya::{maps::MapData, programs::Xdp};
use aya_obj::programs::XdpAttachType;
use nix::{
    sched::{CloneFlags, unshare},
    time::{ClockId, clock_gettime},
};
use retry_common::{
    abi::{Egress, Event, LAYOUT, Settings, setting_flag},
    counter::{Counter, Counters},
    holddown::HoldDown,
    index,
    key::FrameKey,
    latency::{Histogram, Measured},
    limits::table,
    talkers::Drawn,
    wire::frame::Class,
};
use retry_userspace::parts::{
    acl::{Acl, Rules, Size},
    counters::StoredBySource,
    datapath::{
        self, Datapath, DrawnNacks, EgressInterface, Events, Found, Interfaces, KernelFill, KernelSources, Mode, Parts,
    },
    framelog::{self, Log, Memory, NewFrame, Pages, Put, Sizes, Writer},
    limits::ByteTables,
};

use crate::{
    net::netns::host_command,
    xdp::testrun::{self, Action},
};

/// Where the program answers NACKs.
pub const NACK_ADDRESS: SocketAddrV6 = SocketAddrV6::new(Ipv6Addr::new(0xFD10, 0, 0, 0, 0, 0, 0, 1), 9300, 0, 0);
/// MAC that NACKs are sent to; not that of the interface, for nothing comes by a wire.
pub const NACK_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Addresses of this host beside [`NACK_ADDRESS`], as the program is told.
pub const OWN_ADDRESSES: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xFD77, 0, 0, 0, 0, 0, 0, 1), Ipv6Addr::new(0xFE80, 0, 0, 0, 0, 0xFF, 0xFE00, 1)];
/// Source of multicast repairs; not the NACK address, so that a mix-up shows.
pub const EGRESS_ADDRESS: Ipv6Addr = Ipv6Addr::new(0xFD10, 0, 0, 0, 0, 0, 0, 0xE);
/// Hop limit of answers and unicast copies.
pub const UNICAST_HOPS: u8 = 61;
/// Hop limit of multicast repairs.
pub const MULTICAST_HOPS: u8 = 7;
/// Longest frame that the program may send here.
pub const MAX_FRAME: u32 = 3_392;
const HASH_SEED: u64 = 0x5EED;
const LIMIT_ENTRIES: u32 = 65_536;
const GROUP_PREFIX: u16 = 0xFF05;
const GROUP_ID: u16 = 0x000B;
const EGRESS_PORT: u16 = 9001;
/// Groups whose frames the program stores.
pub const JOINED: [u16; 5] = [0, 2, 0x1000, 0xFFFB, 0xFFFE];
/// Port that frames come to.
pub const FRAME_PORT: u16 = 9_001;
/// Life of each class, milliseconds.
pub const LIFE_MS: [u32; 5] = [60_001, 60_002, 60_003, 60_004, 60_005];
/// No test takes as long.
const LEASE: Duration = Duration::from_secs(3_600);
/// A test run has ended by then.
const REST: Duration = Duration::from_millis(200);
/// That of jumbo frames: packets have several buffers.
const MTU: &str = "9000";

/// True on an emulated processor: tests take fewer samples there.
#[must_use]
pub fn slow_machine() -> bool {
    std::env::var_os("RETRY_SLOW_MACHINE").is_some()
}

/// Nanoseconds of the monotonic clock, as the kernel program reads it.
///
/// # Panics
/// The kernel has no such clock: never.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("the kernel has this clock");
    u64::try_from(Duration::from(now).as_nanos()).expect("584 years")
}

/// Runs a closure on a fresh thread in a network namespace that ends with it; a panic passes through.
pub fn in_new_namespace<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("root may make namespaces");
            work()
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// An interface that the program is attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Source MAC of multicast repairs by it.
    pub mac: [u8; 6],
}

impl Interface {
    /// One end of a fresh veth pair in this thread's namespace, both ends up and silent.
    ///
    /// # Errors
    /// Not root, or `ip` is missing or refuses.
    pub fn veth(name: &str) -> Result<Self> {
        let peer = format!("{name}p");
        // Neither neighbour discovery nor MLD: every packet that the program sees is the test's.
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").context("switch IPv6 off")?;
        host_command(&["ip", "link", "add", name, "type", "veth", "peer", "name", &peer])?;
        for end in [name, &peer] {
            host_command(&["ip", "link", "set", end, "mtu", MTU])?;
            host_command(&["ip", "link", "set", end, "up"])?;
        }
        Self::named(name, [2, 0, 0, 0, 0, 0xE])
    }

    /// An interface of this thread's namespace.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn named(name: &str, mac: [u8; 6]) -> Result<Self> {
        let index = nix::net::if_::if_nametoindex(name).with_context(|| format!("no interface {name}"))?;
        Ok(Self { name: name.to_owned(), index, mac })
    }

    fn egress(&self) -> EgressInterface {
        let egress = Egress { source: EGRESS_ADDRESS.octets(), mac: self.mac, reserved: [0; 2] };
        EgressInterface { ifindex: self.index, egress }
    }
}

/// What one packet got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// The program's verdict.
    pub action: Action,
    /// The packet as the program left it.
    pub packet: Vec<u8>,
    /// What it counted.
    pub counted: Vec<(Counter, u64)>,
}

/// The kernel side at work. Dropping it detaches and unpins.
pub struct Loaded {
    datapath: Datapath,
    acl: Acl,
    bytes: ByteTables,
    _fill: KernelFill,
    pages: Arc<Pages>,
    writer: Writer,
    log: Log,
    program: Xdp,
    events: Events,
    drawn: DrawnNacks,
    sources: Option<KernelSources>,
    memory: Memory,
    settings: Settings,
    interface: u32,
    pins: PathBuf,
    config: datapath::Config,
    root: Root,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded").field("pins", &self.pins).finish_non_exhaustive()
    }
}

/// The directory of our pins; goes after what is in it.
#[derive(Debug)]
struct Root(PathBuf);

impl Drop for Root {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

impl Loaded {
    /// Loads the program and attaches it to `here`, where NACKs come in, and to `others`. Multicast repairs leave by
    /// `others`, and by `here` when `egress_here`. The calling thread stands in their namespace.
    ///
    /// # Errors
    /// Not root, no object in this build, or the kernel refuses it.
    pub fn open(here: &Interface, others: &[Interface], egress_here: bool) -> Result<Self> {
        let sizes = Sizes::new(16 << 20, 16 << 20);
        let until_ns = monotonic_ns() + u64::try_from(LEASE.as_nanos()).unwrap_or(0);
        let settings = Settings {
            lease_until_ns: until_ns,
            daemon_until_ns: until_ns,
            egress_interfaces: u8::try_from(others.len() + usize::from(egress_here))?,
            ..settings(here.index, &sizes, egress_here)
        };
        let root = PathBuf::from(format!("/sys/fs/bpf/rt-{}-{}", std::process::id(), nix::unistd::gettid()));
        let egress: Vec<EgressInterface> =
            egress_here.then_some(here).into_iter().chain(others).map(Interface::egress).collect();
        let interfaces = Interfaces {
            all: std::iter::once(here).chain(others).map(|one| (one.name.clone(), one.index)).collect(),
            nack: settings.nack_ifindex,
            nack_mac: Some(settings.nack_mac),
            ingress: settings.ingress_ifindex,
            egress,
            max_frame: settings.max_frame,
        };
        let config = datapath::Config {
            mode: Mode::Native,
            bpffs: root.clone(),
            object: None,
            fabric: here.name.clone(),
            interfaces,
            sizes,
            fill: Some(JOINED.to_vec()),
            settings,
            acl: Size::most(),
            debug: false,
            handover: false,
        };
        Self::open_as(config, Root(root), until_ns)
    }

    /// As [`Loaded::open`], and what it pins outlives it.
    ///
    /// # Errors
    /// As [`Loaded::open`].
    pub fn open_to_stay(here: &Interface) -> Result<Self> {
        let Self { config, root, datapath, .. } = Self::open(here, &[], true)?;
        drop(datapath);
        Self::open_as(datapath::Config { handover: true, ..config }, root, monotonic_ns() + u64::from(u32::MAX) * 1000)
    }

    /// Ends as a daemon ends, and goes on as the next one, with the programs of `object` if there is one: what was pinned is
    /// taken over.
    ///
    /// # Errors
    /// Something does not fit.
    pub fn take_over(self, object: Option<PathBuf>) -> Result<Self> {
        let Self { config, root, mut datapath, writer, settings, .. } = self;
        drop(writer);
        datapath.leave(settings.lease_until_ns);
        drop(datapath);
        Self::open_as(datapath::Config { object, ..config }, root, settings.lease_until_ns)
    }

    fn open_as(config: datapath::Config, root: Root, until_ns: u64) -> Result<Self> {
        let own = OWN_ADDRESSES.into_iter().chain([*NACK_ADDRESS.ip()]).collect();
        let Parts { mut datapath, acl, bytes, pages, found, events, drawn, sources, fill, hash_seed, .. } =
            Datapath::open(&config, &own, &|| false)?;
        let settings = Settings { lease_until_ns: until_ns, daemon_until_ns: until_ns, ..config.settings };
        ensure!(hash_seed == HASH_SEED, "another seed");
        let interface = settings.nack_ifindex;
        let pins = std::fs::read_dir(&root.0)?.next().context("no pins")??.path();
        let (writer, log) = match found {
            Found::Log => {
                let (writer, log, _) = framelog::adopt(Arc::clone(&pages), HASH_SEED, 0)?;
                (writer, log)
            }
            Found::Nothing => framelog::open(Arc::clone(&pages), HASH_SEED, 0),
            Found::Unfit | Found::OldLog(_) => bail!("what was left does not fit"),
        };
        datapath.renew_leases(until_ns, until_ns);
        datapath.go_live()?;
        let map = MapData::from_pin(pins.join("SETTINGS"))?;
        let mut fill = fill.context("no fill")?;
        fill.switch(true)?;
        Ok(Self {
            _fill: fill,
            events,
            drawn,
            sources: Some(sources),
            program: Xdp::from_pin(pins.join("retry_nack"), XdpAttachType::Interface)?,
            memory: Memory::of_map(map.fd().as_fd(), size_of::<Settings>())?,
            acl: Acl::new(acl, 0).resting(REST),
            bytes,
            datapath,
            pages,
            writer,
            log,
            settings,
            interface,
            pins,
            config,
            root,
        })
    }

    /// The settings in force.
    #[must_use]
    pub const fn settings(&self) -> Settings {
        self.settings
    }

    /// Puts other settings in force, the lease included.
    pub fn set(&mut self, settings: Settings) {
        self.settings = settings;
        self.memory.write(0, settings);
    }

    /// Tells the program the MAC of the NACK interface, as the daemon does when it has changed.
    pub fn set_nack_mac(&mut self, mac: Option<[u8; 6]>) {
        self.datapath.set_nack_mac(mac);
    }

    /// The program.
    #[must_use]
    pub const fn program(&self) -> &Xdp {
        &self.program
    }

    /// The lists of who may ask, as the daemon reads them.
    #[must_use]
    pub const fn acl(&self) -> &Acl {
        &self.acl
    }

    /// The states of the budgets in bytes, which the daemon charges too.
    #[must_use]
    pub const fn bytes(&self) -> &ByteTables {
        &self.bytes
    }

    /// Makes a listener known, as the daemon does.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn know(&self, listener: Ipv6Addr) -> Result<()> {
        let map = aya::maps::Map::HashMap(MapData::from_pin(self.pins.join("KNOWN"))?);
        let mut known: aya::maps::HashMap<_, [u8; 16], u8> = aya::maps::HashMap::try_from(map)?;
        Ok(known.insert(listener.octets(), 1, 0)?)
    }

    /// Puts lists of who may ask in force, as the daemon does.
    ///
    /// # Errors
    /// There is no room.
    pub fn set_acl(&mut self, rules: &Rules) -> Result<()> {
        self.acl.replace(rules)?;
        self.settings.acl = self.memory.word(std::mem::offset_of!(Settings, acl)).load(Ordering::Relaxed);
        Ok(())
    }

    /// Tells the program the addresses of this host, as the daemon does when one has come or gone.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_own(&mut self, own: &BTreeSet<Ipv6Addr>) -> Result<()> {
        Ok(self.datapath.set_own(own)?)
    }

    /// Where the maps and the program are pinned.
    #[must_use]
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// The log for reading.
    #[must_use]
    pub const fn log(&self) -> &Log {
        &self.log
    }

    /// Stores a frame from now on for `life`.
    pub fn put(&mut self, key: FrameKey, group: u16, bytes: &[u8], life: Duration, daemon_only: bool) -> Put {
        let life_ms = u32::try_from(life.as_millis()).unwrap_or(u32::MAX);
        let frame = NewFrame { key, class: Class::Tx, group, life_ms, daemon_only, bytes };
        self.writer.put(&frame, monotonic_ns(), |_| {})
    }

    /// Follows what the program has stored since the last call: key, life and bytes of each frame, and whether it is new.
    pub fn follow(&mut self) -> Vec<(FrameKey, u32, Vec<u8>, bool)> {
        let mut frames = Vec::new();
        let whole = self.writer.follow(monotonic_ns(), usize::MAX, |frame| {
            frames.push((frame.key, frame.life_ms, frame.bytes.to_vec(), frame.is_new));
        });
        assert!(whole, "no program runs, so nothing is half written");
        frames
    }

    /// The writer of the log.
    pub const fn writer(&mut self) -> &mut Writer {
        &mut self.writer
    }

    /// The kernel's table of named sources; can be taken once.
    pub const fn take_sources(&mut self) -> Option<KernelSources> {
        self.sources.take()
    }

    /// True when the record at `slot` has this version and key.
    #[must_use]
    pub fn holds(&self, slot: u32, version: u64, key: FrameKey) -> bool {
        let start = slot as usize * 64;
        let word = |at: usize| self.pages.ring.word(start + at).load(Ordering::Relaxed);
        word(0) == version && [word(16).to_ne_bytes(), word(24).to_ne_bytes()].concat() == key.to_bytes()
    }

    /// Leaves ones in all of the ring, as frames of an earlier lap might; for a log that is empty.
    pub fn soil(&self) {
        for at in (0..self.pages.sizes.ring_len()).step_by(8) {
            self.pages.ring.word(at).store(u64::MAX, Ordering::Relaxed);
        }
    }

    /// Marks a frame as multicast just now by another instance.
    pub fn repaired_by_another(&self, key: FrameKey) {
        let hash = index::hash(&key, HASH_SEED);
        let place = index::bucket(hash, self.settings.hold_down_mask);
        let word = HoldDown::others_word(hash, monotonic_ns());
        self.pages.hold_down.word(place as usize * 8).store(word, Ordering::Relaxed);
    }

    /// Runs one packet that seems to come in where NACKs do.
    ///
    /// # Errors
    /// As [`testrun::run`].
    pub fn run(&self, packet: &[u8]) -> Result<Ran> {
        self.run_from(self.interface, packet)
    }

    /// Runs one packet that seems to come in by another interface.
    ///
    /// # Errors
    /// As [`testrun::run`].
    pub fn run_from(&self, interface: u32, packet: &[u8]) -> Result<Ran> {
        let before = self.counters()?;
        let outcome = testrun::run(&self.program, packet, Some(interface))?;
        let counted = difference(&before, &self.counters()?);
        Ok(Ran { action: outcome.action, packet: outcome.packet, counted })
    }

    /// Runs one packet so many times over the same buffer, and returns the time of one run on average: for packets that the
    /// program drops as they are.
    ///
    /// # Errors
    /// As [`testrun::run`].
    pub fn run_many(&self, packet: &[u8], times: u32) -> Result<Duration> {
        Ok(testrun::run_repeated(&self.program, packet, Some(self.interface), times)?.duration)
    }

    /// Runs one packet in a page of its own and lets the kernel carry out what the program says.
    ///
    /// # Errors
    /// As [`testrun::run_live`].
    pub fn run_live(&self, packet: &[u8]) -> Result<()> {
        testrun::run_live(&self.program, packet, self.interface, 1)?;
        Ok(())
    }

    /// The counters since the program was loaded.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn counters(&self) -> Result<Counters> {
        Ok(self.datapath.counters()?)
    }

    /// How long the program took since it was loaded, by what it did.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn latency(&self) -> Result<Vec<(Measured, Histogram)>> {
        Ok(Measured::ALL.iter().copied().zip(self.datapath.latency()?).collect())
    }

    /// Frames that the program stored, by their source, since it was loaded.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn stored_by_source(&self) -> Result<StoredBySource> {
        let mut stored = StoredBySource::default();
        self.datapath.stored(&mut stored)?;
        Ok(stored)
    }

    /// Packets that the interface took, and packets that it did not.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn delivered(&self) -> Result<(u64, u64)> {
        let all = self.datapath.delivered();
        let (_, sent) = all.first().context("the kernel does not tell what became of packets")?;
        Ok((sent.packets, sent.drops))
    }

    /// Sends the daemon's probe by the interface.
    ///
    /// # Errors
    /// As [`testrun::run`].
    pub fn probe(&self) -> Result<()> {
        let attachments = self.datapath.attachments();
        let attachments = attachments.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok(attachments.probe(0, self.interface, [2, 0, 0, 0, 0, 0xE])?)
    }

    /// The NACKs that the program drew for the top talkers since the last call.
    pub fn take_drawn(&mut self) -> Vec<Drawn> {
        std::iter::from_fn(|| self.drawn.take()).collect()
    }

    /// What the program handed over since the last call.
    pub fn take_events(&mut self) -> Vec<Event> {
        let now_ns = monotonic_ns();
        let in_time = |event: Event| {
            let age_ns = now_ns.checked_sub(event.at_ns);
            assert!(age_ns.is_some_and(|age_ns| age_ns < 10_000_000_000), "{event:?} at {now_ns}");
            Event { at_ns: 0, ..event }
        };
        std::iter::from_fn(|| self.events.take()).map(in_time).collect()
    }
}

/// What was counted between two readings.
#[must_use]
pub fn difference(before: &Counters, after: &Counters) -> Vec<(Counter, u64)> {
    Counter::ALL
        .iter()
        .map(|counter| (*counter, after.get(*counter) - before.get(*counter)))
        .filter(|(_, times)| *times != 0)
        .collect()
}

fn settings(interface: u32, sizes: &Sizes, egress_here: bool) -> Settings {
    Settings {
        generation: 1,
        hash_seed: HASH_SEED,
        layout: LAYOUT,
        flags: setting_flag::UNICAST | if egress_here { setting_flag::EGRESS_HERE } else { 0 },
        nack_ifindex: interface,
        bucket_mask: sizes.buckets - 1,
        hold_down_mask: sizes.hold_down_words - 1,
        limit_mask: table::buckets(LIMIT_ENTRIES) - 1,
        byte_mask: table::buckets(LIMIT_ENTRIES) - 1,
        max_frame: MAX_FRAME,
        nack_addr: NACK_ADDRESS.ip().octets(),
        nack_port: NACK_ADDRESS.port().to_be_bytes(),
        nack_mac: NACK_MAC,
        egress_port: EGRESS_PORT.to_be_bytes(),
        life_ms: LIFE_MS,
        ingress_ifindex: interface,
        ingress_port: FRAME_PORT.to_be_bytes(),
        shard_bits: 2,
        group_prefix: GROUP_PREFIX.to_be_bytes(),
        group_id: GROUP_ID.to_be_bytes(),
        unicast_hop_limit: UNICAST_HOPS,
        multicast_hop_limit: MULTICAST_HOPS,
        ..Settings::default()
    }
}
