//! The kernel side: load, attach, pin, settings, counters. The only module that knows aya and names maps.
//!
//! Longer than most files: it alone opens maps, and a map is opened, filled and pinned in one order.

mod adopt;
mod attach;
mod config;
mod error;
mod events;
mod fill;
pub(crate) mod inspect;
mod known;
mod log_lines;
mod own;
pub(crate) mod pinned;
mod pins;
mod sent;
mod talkers;
pub(crate) mod watch;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use aya::maps::{DevMap, HashMap, Map, MapData, MapError, PerCpuArray, RingBuf};
use aya::programs::Xdp;
use aya::{Ebpf, EbpfLoader};
use retry_common::abi;
use retry_common::counter::Counters;
use retry_common::key::FrameKey;
use retry_common::latency::{Histogram, Measured};
use retry_common::limits::ByteLimits;

use crate::acl;
use crate::clock::nanoseconds;
use crate::counters::StoredBySource;
use crate::framelog::{Memory, Pages, Sizes};
use crate::limits::{AddressTable, ByteTables, Changed, GroupTable, LimitTable};
pub use adopt::Found;
use adopt::{Left, NEXT};
pub(crate) use attach::{Attachments, native_mtu};
pub(crate) use config::{Changeable, kernel_settings};
pub use config::{Config, EgressInterface, Interfaces};
pub use error::DatapathError;
pub use events::Events;
pub use fill::{KernelFill, KernelSources};
pub(crate) use known::KernelKnown;
pub(crate) use log_lines::LogLines;
use own::OwnAddresses;
use pins::Pins;
pub(crate) use pins::mount_bpffs;
pub(crate) use sent::Delivered;
use sent::SentTable;
pub use talkers::DrawnNacks;

/// The object for the kernel, built by `cargo xtask build-ebpf`; empty when the daemon was built without it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("RETRY_EBPF_EMBED"));

/// The maps, as the kernel programs name them.
mod map {
    pub(super) const SETTINGS: &str = "SETTINGS";
    pub(super) const RING: &str = "RING";
    pub(super) const INDEX: &str = "INDEX";
    pub(super) const HOLD_DOWN: &str = "HOLD_DOWN";
    pub(super) const LANES: &str = "LANES";
    pub(super) const EVENTS: &str = "EVENTS";
    pub(super) const COUNTERS: &str = "COUNTERS";
    pub(super) const USER_COUNTERS: &str = "USER_COUNTERS";
    pub(super) const LATENCY: &str = "LATENCY";
    pub(super) const BEGAN: &str = "BEGAN";
    pub(super) const USER_LATENCY: &str = "USER_LATENCY";
    pub(super) const STORED: &str = "STORED";
    pub(super) const USER_STORED: &str = "USER_STORED";
    pub(super) const WATCH: &str = "WATCH";
    pub(super) const TALKERS: &str = "TALKERS";
    pub(super) const EGRESS: &str = "EGRESS";
    pub(super) const JOINED: &str = "JOINED";
    pub(super) const SOURCES: &str = "SOURCES";
    pub(super) const KNOWN: &str = "KNOWN";
    pub(super) const OWN: &str = "OWN";
    pub(super) const OWN_FILTER: &str = "OWN_FILTER";
    pub(super) const FILL: &str = "FILL";
    pub(super) const SENT: &str = "SENT";
    pub(super) const LOST: &str = "LOST";
    pub(super) const BULK: &str = "BULK";
    pub(super) const ROLE_STATE: &str = "ROLE_STATE";
    pub(super) const PROBE: &str = "PROBE";
    pub(super) const ADDRESS_LIMIT: &str = "ADDRESS_LIMIT";
    pub(super) const ACL_HEADS: &str = "ACL_HEADS";
    pub(super) const ACL_BUCKETS: &str = "ACL_BUCKETS";
    pub(super) const ACL_KEYS: &str = "ACL_KEYS";
    pub(super) const GROUP_LIMIT: &str = "GROUP_LIMIT";
    pub(super) const SOURCE_BYTES: &str = "SOURCE_BYTES";
    pub(super) const TOTAL_BYTES: &str = "TOTAL_BYTES";
    pub(super) const LIMITS: [&str; 4] = [ADDRESS_LIMIT, "SEQUENCE_LIMIT", "CHAIN_LIMIT", GROUP_LIMIT];
    /// Answers in place, by the NACK's interface. With the role program as all others: a device sends what comes in one poll
    /// in one bulk, through the program of the first packet.
    pub(super) const BACK: &str = "BACK";
    /// Devmaps of broadcasts: name, entries for the NACK's interface, whether multicast goes out.
    pub(super) const BROADCASTS: [(&str, u32, bool); 5] = [
        ("ACK_UNICAST", 2, false),
        ("ACK_MULTI", 1, true),
        ("ACK_UNI_MULTI", 2, true),
        ("MULTICAST", 0, true),
        ("UNI_MULTI", 1, true),
    ];
}

/// Where the lease of the kernel stands in the settings.
const LEASE: usize = std::mem::offset_of!(abi::Settings, lease_until_ns);
/// Where the lease of the daemon stands.
const DAEMON_LEASE: usize = std::mem::offset_of!(abi::Settings, daemon_until_ns);
/// Between two looks whether a start is given up.
const LOOK: Duration = Duration::from_millis(10);

/// How the program is attached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// In the driver.
    Native,
    /// In the stack, on any driver; frames then leave through the daemon, for such packets hardly grow.
    Skb,
}

impl Mode {
    /// Its word in `-xdp` and in what is shown.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Skb => "skb",
        }
    }
}

/// The kernel side at work, as the parts that different threads hold.
pub struct Parts {
    /// Its settings, counters and attachments. Dropping it detaches and unpins.
    pub datapath: Datapath,
    /// The pages of the frame log, which the kernel reads.
    pub pages: Arc<Pages>,
    /// What stands in them.
    pub found: Found,
    /// The seed of all hashes: that of the daemon before, where its maps go on.
    pub hash_seed: u64,
    /// The words of the daemon's own counters.
    pub counters: Memory,
    /// The words of the daemon's own histograms.
    pub latency: Memory,
    /// The table of the frames that the daemon stored, by source.
    pub sources_stored: Memory,
    /// The tables of who may ask; none is in force.
    pub acl: acl::Tables,
    /// The NACKs that the kernel hands over.
    pub events: Events,
    /// The NACKs that were drawn for the top talkers.
    pub drawn: DrawnNacks,
    /// The kernel's limit of (source, group), for NACKs that it admitted up to there.
    pub groups: GroupTable,
    /// The states of the budgets in bytes.
    pub bytes: ByteTables,
    /// The kernel's limit of addresses, for who looks who has asked.
    pub(crate) addresses: AddressTable,
    /// The kernel's known listeners.
    pub(crate) known: KernelKnown,
    /// The sources whose frames the kernel stores, where sources are named.
    pub sources: KernelSources,
    /// The switch of the kernel's fill, which is off; where the kernel is to store frames.
    pub fill: Option<KernelFill>,
    /// The kernel's log lines; only with `debug`.
    pub log_lines: Option<LogLines>,
}

/// The kernel side at work. Dropping it detaches and unpins, unless it has been left to the next daemon.
pub struct Datapath {
    settings: Memory,
    /// What was asked for; the MAC in it is that in force.
    asked: abi::Settings,
    counters: PerCpuArray<MapData, CounterBlock>,
    stored: PerCpuArray<MapData, StoredTable>,
    latency: PerCpuArray<MapData, LatencyHistogram>,
    own: OwnAddresses,
    attachments: Arc<Mutex<Attachments>>,
    egress: HashMap<MapData, u32, EgressValue>,
    sent: SentTable,
    is_suspended: bool,
    /// It is the next daemon's from here on.
    is_left: bool,
    ebpf: Ebpf,
    pins: Arc<Pins>,
    handover: bool,
}

#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
struct CounterBlock(Counters);
// SAFETY: a block of u64 without padding.
unsafe impl aya::Pod for CounterBlock {}

#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
struct StoredTable(abi::SourceTable);
// SAFETY: byte arrays and u64 without padding.
unsafe impl aya::Pod for StoredTable {}

#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
struct LatencyHistogram(Histogram);
// SAFETY: a block of u64 without padding.
unsafe impl aya::Pod for LatencyHistogram {}

#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
struct EgressValue(abi::Egress);
// SAFETY: byte arrays without padding.
unsafe impl aya::Pod for EgressValue {}

impl Datapath {
    /// Loads the object, fills its maps and attaches it. NACKs are answered from then on, once the leases are renewed; those
    /// that claim to come from `own`, the addresses of this host, are the stack's. It gives up once `given_up` says so, also
    /// while the kernel takes the memory of large rings.
    ///
    /// What an earlier daemon left is gone on with, as far as it fits: its program answers until [`Datapath::go_live`].
    ///
    /// # Errors
    /// [`DatapathError`] says what to do. What was loaded, attached and pinned until then is gone again.
    pub fn open(
        config: &Config,
        own: &BTreeSet<Ipv6Addr>,
        given_up: &dyn Fn() -> bool,
    ) -> Result<Parts, DatapathError> {
        let object = object(config)?;
        let Config { interfaces, .. } = config;
        let pins = Arc::new(Pins::take(&config.bpffs, &config.fabric)?);
        // One that served this interface too, beside another fabric interface: its program would be in the way.
        let indexes: Vec<u32> = interfaces.all.iter().map(|(_, index)| *index).collect();
        for gone in inspect::end_on(&config.bpffs, &indexes, Some(&config.fabric))? {
            tracing::warn!(interface = gone, "the kernel program and the frames of an earlier daemon are given up");
        }
        let (left, was_there) = Left::find(&pins, config, &object)?;
        // What was left stays if this start fails.
        pins.stay(left.is_some());
        let mut asked = config.settings;
        if let Some(left) = &left {
            asked.hash_seed = left.settings.hash_seed;
        }
        let kept = left.as_ref().map(|left| left.kept.clone()).unwrap_or_default();
        let mut ebpf = load_unless(config, object, Arc::clone(&pins), kept.clone(), given_up)?;
        let pages = Arc::new(Pages {
            ring: mapped(&ebpf, map::RING, config.sizes.ring_len())?,
            index: mapped(&ebpf, map::INDEX, config.sizes.index_len())?,
            hold_down: mapped(&ebpf, map::HOLD_DOWN, config.sizes.hold_down_len())?,
            lanes: mapped(&ebpf, map::LANES, config.sizes.lanes_len())?,
            sizes: config.sizes,
        });
        let settings = mapped(&ebpf, map::SETTINGS, size_of::<abi::Settings>())?;
        settings.write(0, asked);
        fill_devmaps(&mut ebpf, interfaces)?;
        sent::fill_probes(&mut ebpf, &interfaces.all)?;
        for (name, map) in ebpf.maps() {
            if !name.starts_with('.') && !kept.contains(&name) {
                let pin = pin_name(name, left.is_some());
                map.pin(pins.path(&pin)).map_err(|error| pins.error(&pin, &error))?;
            }
        }
        let counted = mapped(&ebpf, map::USER_COUNTERS, size_of::<Counters>())?;
        let sources_stored = mapped(&ebpf, map::USER_STORED, size_of::<abi::SourceTable>())?;
        let mut egress =
            HashMap::try_from(taken(&mut ebpf, map::EGRESS)?).map_err(|_| DatapathError::Map(map::EGRESS))?;
        fill_egress(&mut egress, interfaces)?;
        let mut sent = SentTable::open(&mut ebpf, &pins, left.is_some())?;
        sent.adapt(&interfaces.all)?;
        let counters =
            PerCpuArray::try_from(taken(&mut ebpf, map::COUNTERS)?).map_err(|_| DatapathError::Map(map::COUNTERS))?;
        let stored =
            PerCpuArray::try_from(taken(&mut ebpf, map::STORED)?).map_err(|_| DatapathError::Map(map::STORED))?;
        let latency =
            PerCpuArray::try_from(taken(&mut ebpf, map::LATENCY)?).map_err(|_| DatapathError::Map(map::LATENCY))?;
        let measured = mapped(&ebpf, map::USER_LATENCY, size_of::<abi::UserHistograms>())?;
        let events = RingBuf::try_from(taken(&mut ebpf, map::EVENTS)?).map_err(|_| DatapathError::Map(map::EVENTS))?;
        let drawn = RingBuf::try_from(taken(&mut ebpf, map::TALKERS)?).map_err(|_| DatapathError::Map(map::TALKERS))?;
        let groups = mapped(&ebpf, map::GROUP_LIMIT, LimitTable::<abi::GroupKey>::len(asked.limit_mask))?;
        let groups = GroupTable::new(LimitTable::new(groups, asked.limit_mask), asked.hash_seed);
        let addresses = mapped(&ebpf, map::ADDRESS_LIMIT, LimitTable::<abi::AddressKey>::len(asked.limit_mask))?;
        let addresses = AddressTable::new(LimitTable::new(addresses, asked.limit_mask), asked.hash_seed);
        let bytes = byte_tables(&ebpf, &asked)?;
        let known = KernelKnown::open(&mut ebpf)?;
        let sources =
            HashMap::try_from(taken(&mut ebpf, map::SOURCES)?).map_err(|_| DatapathError::Map(map::SOURCES))?;
        let acl = acl_tables(&ebpf, config.acl)?;
        let mut own_addresses = OwnAddresses::new(&mut ebpf, asked.hash_seed)?;
        own_addresses.set(own)?;
        let fill = config.fill.as_ref().map(|groups| fill::prepare(&mut ebpf, groups)).transpose()?;
        let attachments = Attachments::open(&mut ebpf, config, &pins, left.as_ref())?;
        let log_lines = config.debug.then(|| LogLines::open(&mut ebpf)).flatten();
        let datapath = Self {
            settings,
            asked,
            counters,
            stored,
            latency,
            own: own_addresses,
            attachments: Arc::new(Mutex::new(attachments)),
            egress,
            sent,
            is_suspended: false,
            is_left: false,
            ebpf,
            pins,
            handover: config.handover,
        };
        let found = match left {
            None if was_there => Found::Unfit,
            None => Found::Nothing,
            Some(left) if left.has_log() => Found::Log,
            Some(left) => left.old_log.map_or(Found::Nothing, |pages| Found::OldLog(Box::new(pages))),
        };
        let (events, sources) = (Events(events), KernelSources(sources));
        Ok(Parts {
            datapath,
            pages,
            found,
            hash_seed: asked.hash_seed,
            counters: counted,
            latency: measured,
            sources_stored,
            acl,
            events,
            drawn: DrawnNacks(drawn),
            groups,
            bytes,
            addresses,
            known,
            sources,
            fill,
            log_lines,
        })
    }

    /// Puts this daemon's program in the place of its predecessor's, where there is one, in one step per interface. The maps are
    /// filled and the leases renewed by then. With hand-over on, all that is pinned outlives the daemon from here on.
    ///
    /// # Errors
    /// [`DatapathError::Attach`]; what an earlier daemon left stays.
    pub fn go_live(&mut self) -> Result<(), DatapathError> {
        self.settings.write(std::mem::offset_of!(abi::Settings, since_unix_ns), unix_ns());
        self.attachments.lock().unwrap_or_else(PoisonError::into_inner).change_links()?;
        adopt::rename(&self.pins).map_err(|error| self.pins.error(NEXT, &error))?;
        self.pins.stay(self.handover);
        Ok(())
    }

    /// Ends all that an earlier daemon left, too, when this is dropped before [`Datapath::go_live`].
    pub fn give_up(&mut self) {
        self.pins.stay(false);
    }

    /// Leaves the kernel side to the next daemon, if hand-over is on: it answers hits and stores frames until `until_ns` of the
    /// monotonic clock, and leaves nothing to this daemon any more. True when it was left; else it ends when this is dropped.
    pub fn leave(&mut self, until_ns: u64) -> bool {
        if self.handover {
            self.is_left = true;
            self.set_lease(DAEMON_LEASE, 0);
            if !self.is_suspended {
                self.set_lease(LEASE, until_ns);
            }
        }
        self.handover
    }

    /// Ends what has been left to the next daemon, all but the lock: no other daemon takes it over while this process lives, for a
    /// thread that did not end in time may still write to the log.
    pub fn stay_locked(self) {
        if let Err(error) = adopt::settle(&self.pins) {
            tracing::warn!(%error, "could not remove the pins that wait");
        }
        // The kernel takes the lock back with the process's descriptors.
        std::mem::forget(Arc::clone(&self.pins));
    }

    /// True once it has been left to the next daemon.
    pub const fn is_left(&self) -> bool {
        self.is_left
    }

    /// The program's attachments. What they do waits for other users of the network stack: lock them while nothing else is.
    pub fn attachments(&self) -> Arc<Mutex<Attachments>> {
        Arc::clone(&self.attachments)
    }

    /// From here on the kernel answers and stores nothing, until [`Datapath::resume`].
    pub fn suspend(&mut self) {
        if self.is_left {
            return;
        }
        self.is_suspended = true;
        self.set_lease(LEASE, 0);
    }

    /// Ends [`Datapath::suspend`]: the next lease is heeded.
    pub fn resume(&mut self) {
        self.is_suspended = false;
    }

    /// Takes over the interfaces as they are now. The frames stay.
    ///
    /// # Errors
    /// An interface has gone again.
    pub fn adapt(&mut self, interfaces: &Interfaces) -> Result<(), DatapathError> {
        fill_egress(&mut self.egress, interfaces)?;
        fill_devmaps(&mut self.ebpf, interfaces)?;
        sent::fill_probes(&mut self.ebpf, &interfaces.all)?;
        self.sent.adapt(&interfaces.all)?;
        let words = [
            (std::mem::offset_of!(abi::Settings, max_frame), interfaces.max_frame),
            (std::mem::offset_of!(abi::Settings, nack_ifindex), interfaces.nack),
            (std::mem::offset_of!(abi::Settings, ingress_ifindex), interfaces.ingress),
        ];
        for (offset, word) in words {
            self.settings.write(offset, word);
        }
        self.set_nack_mac(interfaces.nack_mac);
        Ok(())
    }

    /// Gives the kernel program what operators have changed, word by word; what is as it was is not touched. What has been left
    /// to the next daemon stays as it is.
    pub(crate) fn change(&mut self, wanted: &Changeable) {
        if self.is_left {
            return;
        }
        let (old, new) = (self.asked, wanted.within(self.asked));
        let limits = std::mem::offset_of!(abi::Settings, limits);
        let mut words = Vec::new();
        let mut differs = |offset, old: &[u64], new: &[u64]| {
            let each = (offset..).step_by(size_of::<u64>()).zip(old.iter().zip(new));
            words.extend(each.filter(|(_, (old, new))| old != new).map(|(offset, (_, new))| (offset, *new)));
        };
        for (offset, old, new) in [
            (std::mem::offset_of!(abi::Limits, address), old.limits.address, new.limits.address),
            (std::mem::offset_of!(abi::Limits, group), old.limits.group, new.limits.group),
        ] {
            differs(limits + offset, &old.words(), &new.words());
        }
        for (offset, old, new) in [
            (std::mem::offset_of!(abi::Limits, sequence), old.limits.sequence, new.limits.sequence),
            (std::mem::offset_of!(abi::Limits, chain), old.limits.chain, new.limits.chain),
        ] {
            differs(limits + offset, &old.words(), &new.words());
        }
        let bytes = std::mem::offset_of!(abi::Settings, bytes);
        for (offset, old, new) in [
            (std::mem::offset_of!(ByteLimits, source), old.bytes.source, new.bytes.source),
            (std::mem::offset_of!(ByteLimits, total), old.bytes.total, new.bytes.total),
        ] {
            differs(bytes + offset, &old.words(), &new.words());
        }
        let factor = [old.bytes.unproven_factor, new.bytes.unproven_factor].map(|factor| [factor]);
        differs(bytes + std::mem::offset_of!(ByteLimits, unproven_factor), &factor[0], &factor[1]);
        let hold_down = |settings: &abi::Settings| [settings.hold_down.ours_ns, settings.hold_down.others_ns];
        differs(std::mem::offset_of!(abi::Settings, hold_down), &hold_down(&old), &hold_down(&new));
        for (offset, word) in words {
            self.settings.word(offset).store(word, Ordering::Relaxed);
        }
        let lives = (std::mem::offset_of!(abi::Settings, life_ms)..).step_by(size_of::<u32>());
        let flags = (std::mem::offset_of!(abi::Settings, flags), (old.flags, new.flags));
        for (offset, (_, word)) in
            lives.zip(old.life_ms.into_iter().zip(new.life_ms)).chain([flags]).filter(|(_, (old, new))| old != new)
        {
            self.settings.write(offset, word);
        }
        self.asked = new;
    }

    /// Lets every key of these limits begin anew, in the kernel program's tables, which the next daemon goes on with once they
    /// have been left to it.
    pub(crate) fn forget(&self, limits: Changed) {
        if self.is_left {
            return;
        }
        // The budgets in bytes are one for both sides: the engine forgets them.
        let Changed { address, sequence, chain, group, source_bytes: _, total_bytes: _ } = limits;
        let [address_map, sequence_map, chain_map, group_map] = map::LIMITS;
        let forgotten = [
            address.then(|| self.forget_in::<abi::AddressKey>(address_map)),
            sequence.then(|| self.forget_in::<FrameKey>(sequence_map)),
            chain.then(|| self.forget_in::<abi::ChainKey>(chain_map)),
            group.then(|| self.forget_in::<abi::GroupKey>(group_map)),
        ];
        for error in forgotten.into_iter().flatten().filter_map(Result::err) {
            tracing::warn!(%error, "a limit that has changed goes on from what was counted before");
        }
    }

    fn forget_in<K: Copy>(&self, name: &'static str) -> Result<(), DatapathError> {
        let mask = self.asked.limit_mask;
        let memory = mapped(&self.ebpf, name, LimitTable::<K>::len(mask))?;
        LimitTable::<K>::new(memory, mask).forget();
        Ok(())
    }

    /// Lets the kernel answer until `until_ns` of the monotonic clock, and leave NACKs to this daemon until `daemon_until_ns`.
    pub fn renew_leases(&self, until_ns: u64, daemon_until_ns: u64) {
        if self.is_left {
            return;
        }
        self.set_lease(DAEMON_LEASE, daemon_until_ns);
        if !self.is_suspended {
            self.set_lease(LEASE, until_ns);
        }
    }

    fn set_lease(&self, place: usize, until_ns: u64) {
        self.settings.word(place).store(until_ns, Ordering::Release);
    }

    /// Tells the kernel the MAC that NACKs have to be sent to, after the interface's has changed. `None` checks none.
    ///
    /// What is sent to the former MAC is the stack's from then on.
    pub fn set_nack_mac(&mut self, mac: Option<[u8; 6]>) {
        self.asked.nack_mac = mac.unwrap_or_default();
        let word = self.asked.nack_mac_word(self.asked.nack_mac);
        self.settings.word(abi::NACK_MAC_WORD).store(word, Ordering::Relaxed);
    }

    /// Tells the kernel the addresses of this host, after one has come or gone.
    ///
    /// # Errors
    /// The kernel refuses, or there are more than 1,024: NACKs that claim to come from those left out are answered by the
    /// interface that they came in by.
    pub fn set_own(&mut self, own: &BTreeSet<Ipv6Addr>) -> Result<(), DatapathError> {
        self.own.set(own)
    }

    /// The kernel's counters, all CPUs summed.
    pub fn counters(&self) -> Result<Counters, DatapathError> {
        let blocks = self
            .counters
            .get(&0, 0)
            .map_err(|error| DatapathError::Fill { map: map::COUNTERS, why: error.to_string() })?;
        Ok(blocks.iter().fold(Counters::default(), |sum, block| sum.plus(&block.0)))
    }

    /// How long the kernel program took, in the order of [`Measured::ALL`], all CPUs summed.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn latency(&self) -> Result<Vec<Histogram>, DatapathError> {
        let refused = |error: MapError| DatapathError::Fill { map: map::LATENCY, why: error.to_string() };
        Measured::ALL.iter().map(|one| summed(&self.latency, *one).map_err(refused)).collect()
    }

    /// Frames that the kernel stored, all CPUs added to `sum` by source.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn stored(&self, sum: &mut StoredBySource) -> Result<(), DatapathError> {
        let tables =
            self.stored.get(&0, 0).map_err(|error| DatapathError::Fill { map: map::STORED, why: error.to_string() })?;
        for StoredTable(table) in tables.iter() {
            for one in table.sources() {
                sum.add(Ipv6Addr::from(one.address), one.frames);
            }
            sum.other += table.other;
        }
        Ok(())
    }

    /// What was lost before it came to a driver, by interface, as [`Datapath::keep_lost`] has kept it.
    pub fn lost(&self) -> Vec<(String, u64)> {
        self.sent.lost()
    }

    /// Keeps what was lost on the way to the driver of an interface.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn keep_lost(&mut self, interface: &str, lost: u64) -> Result<(), DatapathError> {
        self.sent.keep_lost(interface, lost)
    }

    /// What became of packets that were redirected to interfaces; empty where the kernel does not tell.
    pub fn delivered(&self) -> Vec<Delivered> {
        self.sent.delivered()
    }
}

impl Drop for Datapath {
    fn drop(&mut self) {
        // Other holders of a handle attach nothing any more.
        self.attachments.lock().unwrap_or_else(PoisonError::into_inner).end();
    }
}

/// As [`load`], on a thread that is left behind once `given_up` says so: no system call takes as long as that for the memory
/// of a large ring, and nothing but the end of the process breaks it off.
fn load_unless(
    config: &Config,
    object: Cow<'static, [u8]>,
    pins: Arc<Pins>,
    kept: Vec<&'static str>,
    given_up: &dyn Fn() -> bool,
) -> Result<Ebpf, DatapathError> {
    let (done, loaded) = mpsc::channel();
    let config = config.clone();
    // Its descriptor leads to the pins that are opened. Without any it is not held: a start that is given up removes it.
    let pins = (!kept.is_empty()).then_some(pins);
    let thread = thread::Builder::new().name("load".to_owned()).spawn(move || {
        let ebpf = load(&config, &object, pins.as_deref(), &kept);
        // Before the other thread goes on: the directory may be opened again.
        drop(pins);
        // No thread waits for it any more if the start was given up.
        let _ = done.send(ebpf);
    });
    thread.map_err(|error| DatapathError::Load(error.to_string()))?;
    loop {
        match loaded.recv_timeout(LOOK) {
            Ok(ebpf) => return ebpf,
            Err(RecvTimeoutError::Timeout) if given_up() => return Err(DatapathError::GivenUp),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(DatapathError::Load("the loader panicked".to_owned())),
        }
    }
}

/// Whether this kernel takes the programs: loads them with the smallest maps, attaches and pins nothing, and lets them go.
///
/// # Errors
/// [`DatapathError`] says what to do.
pub(crate) fn try_load(config: &Config) -> Result<(), DatapathError> {
    let object = object(config)?;
    let mut config = Config { sizes: Sizes::new(0, 0), acl: acl::Size::default(), ..config.clone() };
    config.settings.limit_mask = 0;
    config.settings.byte_mask = 0;
    load(&config, &object, None, &[]).map(drop)
}

/// The object with the programs.
fn object(config: &Config) -> Result<Cow<'static, [u8]>, DatapathError> {
    match &config.object {
        None if OBJECT.is_empty() => Err(DatapathError::NoObject),
        None => Ok(Cow::Borrowed(OBJECT)),
        Some(path) => fs::read(path)
            .map(Cow::Owned)
            .map_err(|error| DatapathError::Object { path: path.display().to_string(), why: error.to_string() }),
    }
}

/// The maps whose number of entries follows from the settings.
fn map_entries(config: &Config) -> Vec<(&'static str, u32)> {
    let log = [
        (map::RING, config.sizes.segments()),
        (map::INDEX, config.sizes.all_buckets()),
        (map::HOLD_DOWN, config.sizes.hold_down_words),
    ];
    let (buckets, keys) = config.acl.entries();
    let acl = [(map::ACL_BUCKETS, buckets), (map::ACL_KEYS, keys)];
    let bytes = [(map::SOURCE_BYTES, config.settings.byte_mask + 1)];
    log.into_iter()
        .chain(acl)
        .chain(bytes)
        .chain(map::LIMITS.map(|name| (name, config.settings.limit_mask + 1)))
        .collect()
}

/// Loads the object, with the maps of these names as they are pinned.
fn load(config: &Config, object: &[u8], pins: Option<&Pins>, kept: &[&'static str]) -> Result<Ebpf, DatapathError> {
    // 0 switches every level off, 4 is debug (aya-log's order).
    let log_level: u8 = if config.debug { 4 } else { 0 };
    // Loads may pass loads on every processor but x86: the program then takes a step that orders them.
    let weak_order = u8::from(!cfg!(target_arch = "x86_64"));
    let mut loader = EbpfLoader::new();
    loader.override_global("AYA_LOG_LEVEL", &log_level, true).override_global("WEAK_ORDER", &weak_order, true);
    for (name, entries) in map_entries(config) {
        loader.map_max_entries(name, entries);
    }
    if let Some(pins) = pins {
        for name in kept {
            loader.map_pin_path(name, pins.path(name));
        }
    }
    let mut ebpf = loader.load(object).map_err(|error| DatapathError::Load(chain(&error)))?;
    let mut names = vec!["retry_role", "retry_nack", sent::PROBE];
    names.extend(config.fill.as_ref().map(|_| fill::PROGRAM));
    verify(&mut ebpf, &names)?;
    Ok(ebpf)
}

/// Loads programs, each on a thread of its own: the kernel follows every path through each of them, a tenth of a second for the
/// longest, and follows several at a time for a caller with CAP_PERFMON.
fn verify(ebpf: &mut Ebpf, names: &[&str]) -> Result<(), DatapathError> {
    thread::scope(|scope| {
        let loads: Vec<_> = ebpf
            .programs_mut()
            .filter(|(name, _)| names.contains(name))
            .map(|(name, program)| {
                scope.spawn(move || {
                    <&mut Xdp>::try_from(program)
                        .and_then(Xdp::load)
                        .map_err(|error| DatapathError::Load(format!("{name}: {}", chain(&error))))
                })
            })
            .collect();
        loads.into_iter().try_for_each(|load| load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, DatapathError> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| DatapathError::Load(format!("no program {name} in the object")))
}

/// The name of a pin, which waits where there is one of this name in force.
fn pin_name(name: &str, waits: bool) -> String {
    if waits { format!("{name}{NEXT}") } else { name.to_owned() }
}

/// Nanoseconds of Unix time.
fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    nanoseconds(since)
}

/// One mapping of a whole array map.
fn mapped(ebpf: &Ebpf, name: &'static str, len: usize) -> Result<Memory, DatapathError> {
    let Some(Map::Array(data)) = ebpf.map(name) else {
        return Err(DatapathError::Map(name));
    };
    Memory::of_map(data.fd().as_fd(), len).map_err(|error| DatapathError::Fill { map: name, why: error.to_string() })
}

/// The tables of who may ask.
fn acl_tables(ebpf: &Ebpf, size: acl::Size) -> Result<acl::Tables, DatapathError> {
    let [heads, buckets, keys] = size.bytes();
    let memory = [
        mapped(ebpf, map::ACL_HEADS, heads)?,
        mapped(ebpf, map::ACL_BUCKETS, buckets)?,
        mapped(ebpf, map::ACL_KEYS, keys)?,
        mapped(ebpf, map::SETTINGS, size_of::<abi::Settings>())?,
    ];
    Ok(acl::Tables::new(size, memory))
}

/// The states of the budgets in bytes.
fn byte_tables(ebpf: &Ebpf, asked: &abi::Settings) -> Result<ByteTables, DatapathError> {
    let sources = mapped(ebpf, map::SOURCE_BYTES, LimitTable::<abi::AddressKey>::len(asked.byte_mask))?;
    let total = mapped(ebpf, map::TOTAL_BYTES, size_of::<abi::TotalBytes>())?;
    Ok(ByteTables::new(sources, asked.byte_mask, total, asked.hash_seed))
}

fn taken(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, DatapathError> {
    ebpf.take_map(name).ok_or(DatapathError::Map(name))
}

/// Entries in the order in which clones leave: other interfaces first, then the NACK's, so that the original, which goes
/// last, leaves by the NACK's interface wherever there is one.
fn fill_devmaps(ebpf: &mut Ebpf, interfaces: &Interfaces) -> Result<(), DatapathError> {
    let role = program(ebpf, "retry_role")?
        .fd()
        .and_then(|fd| Ok(fd.try_clone()?))
        .map_err(|error| DatapathError::Load(chain(&error)))?;
    let here = interfaces.nack;
    for (name, answers, multicast) in map::BROADCASTS {
        let mut entries: Vec<u32> = Vec::new();
        if multicast {
            entries.extend(interfaces.egress.iter().map(|egress| egress.ifindex).filter(|ifindex| *ifindex != here));
            entries.extend(interfaces.egress.iter().map(|egress| egress.ifindex).filter(|ifindex| *ifindex == here));
        }
        entries.extend(std::iter::repeat_n(here, answers as usize));
        let map = ebpf.map_mut(name).ok_or(DatapathError::Map(name))?;
        let mut devmap = DevMap::try_from(map).map_err(|_| DatapathError::Map(name))?;
        for (place, ifindex) in (0u32..).zip(entries) {
            devmap
                .set(place, ifindex, Some(&role), 0)
                .map_err(|error| DatapathError::Fill { map: name, why: chain(&error) })?;
        }
    }
    let map = ebpf.map_mut(map::BACK).ok_or(DatapathError::Map(map::BACK))?;
    let mut back = DevMap::try_from(map).map_err(|_| DatapathError::Map(map::BACK))?;
    back.set(0, here, Some(&role), 0).map_err(|error| DatapathError::Fill { map: map::BACK, why: chain(&error) })
}

/// Makes the map of egress interfaces say what they are now. Entries of those that are gone leave: no packet goes there.
fn fill_egress(map: &mut HashMap<MapData, u32, EgressValue>, interfaces: &Interfaces) -> Result<(), DatapathError> {
    let refused = |error: MapError| DatapathError::Fill { map: map::EGRESS, why: chain(&error) };
    let there: Vec<u32> = map.keys().collect::<Result<_, _>>().map_err(refused)?;
    for gone in there.iter().filter(|gone| !interfaces.egress.iter().any(|egress| egress.ifindex == **gone)) {
        map.remove(gone).map_err(refused)?;
    }
    for egress in &interfaces.egress {
        map.insert(egress.ifindex, EgressValue(egress.egress), 0).map_err(refused)?;
    }
    Ok(())
}

/// One histogram, all CPUs summed.
fn summed(map: &PerCpuArray<MapData, LatencyHistogram>, measured: Measured) -> Result<Histogram, MapError> {
    let cpus = map.get(&(measured as u32), 0)?;
    Ok(cpus.iter().fold(Histogram::default(), |sum, cpu| sum.plus(&cpu.0)))
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text.replace('\n', " ")
}
