//! The kernel side: load, attach, pin, settings, counters. The only module that knows aya and names maps.

mod groups;
mod pins;

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use aya::maps::{Array, DevMap, HashMap, Map, MapData, MapError, PerCpuArray, ProgramArray, RingBuf};
use aya::programs::links::FdLink;
use aya::programs::{ProgramError, ProgramFd, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use retry_common::abi::{self, Event};
use retry_common::counter::Counters;

use crate::framelog::{Memory, Pages, Sizes};
pub use groups::KernelGroups;
use pins::{Pins, pin_error};

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
    pub(super) const EGRESS: &str = "EGRESS";
    pub(super) const JOINED: &str = "JOINED";
    pub(super) const SOURCES: &str = "SOURCES";
    pub(super) const FILL: &str = "FILL";
    pub(super) const GROUP_LIMIT: &str = "GROUP_LIMIT";
    pub(super) const LIMITS: [&str; 4] = ["ADDRESS_LIMIT", "SEQUENCE_LIMIT", "CHAIN_LIMIT", GROUP_LIMIT];
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

/// How the program is attached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// In the driver.
    Native,
    /// In the stack, on any driver; frames then leave through the daemon, for such packets hardly grow.
    Skb,
}

/// One interface that multicast repairs leave by.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EgressInterface {
    /// Its index.
    pub ifindex: u32,
    /// Source MAC and address of repairs.
    pub egress: abi::Egress,
}

/// What the kernel side is asked to be.
#[derive(Debug)]
pub struct Request<'a> {
    /// How to attach.
    pub mode: Mode,
    /// Directory of the pins, on bpffs.
    pub bpffs: &'a Path,
    /// The fabric interface; it names the pins.
    pub fabric: &'a str,
    /// Interfaces to attach to, each once: name and index.
    pub interfaces: &'a [(String, u32)],
    /// Interfaces that multicast repairs leave by.
    pub egress: &'a [EgressInterface],
    /// Sizes of the frame log.
    pub sizes: Sizes,
    /// The groups whose frames the kernel stores, by index; `None` leaves them to the daemon.
    pub fill: Option<&'a [u16]>,
    /// The settings; the lease in them is replaced by [`Datapath::renew_lease`].
    pub settings: abi::Settings,
    /// True for log lines from the kernel.
    pub debug: bool,
}

/// Why there is no kernel side. Each line says what to do.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// No object embedded.
    #[error("this binary was built without its kernel program: build it with `cargo xtask build`")]
    NoObject,
    /// The directory of pins is not on bpffs.
    #[error(
        "-bpffs {path}: no BPF file system there ({why}): mount one with `mount -t bpf bpffs /sys/fs/bpf`, or name another directory"
    )]
    NoBpffs {
        /// The directory.
        path: String,
        /// What was found.
        why: String,
    },
    /// Another daemon serves this interface.
    #[error("another daemon serves {interface} in this network namespace: it holds {directory}")]
    Locked {
        /// The directory that it holds.
        directory: String,
        /// The interface.
        interface: String,
    },
    /// A pin could not be made.
    #[error(
        "cannot pin at {path}: {why} (run as root, or name a -bpffs directory on a BPF file system that this user may write)"
    )]
    Pin {
        /// The path.
        path: String,
        /// The system's words.
        why: String,
    },
    /// The kernel refused the object.
    #[error(
        "the kernel refused the program: {0} (it needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, or root, and Linux 6.1 or later)"
    )]
    Load(String),
    /// A map is missing or has another type.
    #[error("the kernel program has no usable map {0}")]
    Map(&'static str),
    /// A map could not be filled or mapped.
    #[error("map {map}: {why}")]
    Fill {
        /// Its name.
        map: &'static str,
        /// The system's words.
        why: String,
    },
    /// An interface refused the program.
    #[error("{interface} does not take the program in {mode} mode: {why}")]
    Attach {
        /// The interface.
        interface: String,
        /// The mode.
        mode: &'static str,
        /// What the system said and what to do.
        why: String,
    },
}

/// The kernel side at work. Dropping it detaches and unpins.
pub struct Datapath {
    pages: Arc<Pages>,
    settings: Memory,
    counters: PerCpuArray<MapData, CounterBlock>,
    events: Option<Events>,
    groups: Option<KernelGroups>,
    sources: Option<KernelSources>,
    fill: Option<KernelFill>,
    _links: Vec<FdLink>,
    _egress: HashMap<MapData, u32, EgressValue>,
    ebpf: Ebpf,
    _pins: Pins,
}

#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
struct CounterBlock(Counters);
// SAFETY: a block of u64 without padding.
unsafe impl aya::Pod for CounterBlock {}

#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
struct EgressValue(abi::Egress);
// SAFETY: byte arrays without padding.
unsafe impl aya::Pod for EgressValue {}

impl Datapath {
    /// Loads the object, fills its maps and attaches it. NACKs are answered from then on, once the lease is renewed.
    pub fn open(request: &Request<'_>) -> Result<Self, DatapathError> {
        if OBJECT.is_empty() {
            return Err(DatapathError::NoObject);
        }
        let pins = Pins::take(request.bpffs, request.fabric)?;
        let mut ebpf = load(request)?;
        let pages = Arc::new(Pages {
            ring: mapped(&ebpf, map::RING, request.sizes.ring_len())?,
            index: mapped(&ebpf, map::INDEX, request.sizes.index_len())?,
            hold_down: mapped(&ebpf, map::HOLD_DOWN, request.sizes.hold_down_len())?,
            lanes: mapped(&ebpf, map::LANES, request.sizes.lanes_len())?,
            sizes: request.sizes,
        });
        let settings = mapped(&ebpf, map::SETTINGS, size_of::<abi::Settings>())?;
        settings.write(0, request.settings);
        fill_devmaps(&mut ebpf, request)?;
        for (name, map) in ebpf.maps() {
            if !name.starts_with('.') {
                let path = pins.path(name);
                map.pin(&path).map_err(|error| pin_error(&path, &error))?;
            }
        }
        let egress = fill_egress(&mut ebpf, request)?;
        let counters =
            PerCpuArray::try_from(taken(&mut ebpf, map::COUNTERS)?).map_err(|_| DatapathError::Map(map::COUNTERS))?;
        let events = RingBuf::try_from(taken(&mut ebpf, map::EVENTS)?).map_err(|_| DatapathError::Map(map::EVENTS))?;
        let mask = request.settings.limit_mask;
        let groups = mapped(&ebpf, map::GROUP_LIMIT, KernelGroups::len(mask))?;
        let sources =
            HashMap::try_from(taken(&mut ebpf, map::SOURCES)?).map_err(|_| DatapathError::Map(map::SOURCES))?;
        let fill = request.fill.map(|groups| load_fill(&mut ebpf, groups)).transpose()?;
        let links = attach(&mut ebpf, request, &pins)?;
        Ok(Self {
            pages,
            settings,
            counters,
            events: Some(Events(events)),
            groups: Some(KernelGroups::new(groups, mask, request.settings.hash_seed)),
            sources: Some(KernelSources(sources)),
            fill,
            _links: links,
            _egress: egress,
            ebpf,
            _pins: pins,
        })
    }

    /// The pages of the frame log, which the kernel reads.
    pub fn pages(&self) -> Arc<Pages> {
        Arc::clone(&self.pages)
    }

    /// Lets the kernel answer until `until_ns` of the monotonic clock.
    pub fn renew_lease(&self, until_ns: u64) {
        self.settings.word(std::mem::offset_of!(abi::Settings, lease_until_ns)).store(until_ns, Ordering::Release);
    }

    /// The kernel's counters, all CPUs summed.
    pub fn counters(&self) -> Result<Counters, DatapathError> {
        let blocks = self
            .counters
            .get(&0, 0)
            .map_err(|error| DatapathError::Fill { map: map::COUNTERS, why: error.to_string() })?;
        Ok(blocks.iter().fold(Counters::default(), |sum, block| sum.plus(&block.0)))
    }

    /// The NACKs that the kernel hands over; can be taken once.
    pub fn take_events(&mut self) -> Option<Events> {
        self.events.take()
    }

    /// The kernel's limit of (source, group), for NACKs that it admitted up to there; can be taken once.
    pub fn take_groups(&mut self) -> Option<KernelGroups> {
        self.groups.take()
    }

    /// The sources whose frames the kernel stores, where sources are named; can be taken once.
    pub fn take_sources(&mut self) -> Option<KernelSources> {
        self.sources.take()
    }

    /// The switch of the kernel's fill, which is off; can be taken once.
    pub fn take_fill(&mut self) -> Option<KernelFill> {
        self.fill.take()
    }

    /// The kernel's log lines, for `aya_log`'s reader; only with `debug`.
    pub fn log_lines(&mut self) -> Option<aya_log::EbpfLogger<&'static dyn log::Log>> {
        aya_log::EbpfLogger::init(&mut self.ebpf).ok()
    }
}

/// The switch of the kernel's fill.
pub struct KernelFill {
    programs: ProgramArray<MapData>,
    program: ProgramFd,
}

impl KernelFill {
    /// Lets the kernel store frames, or leaves them to the sockets.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn switch(&mut self, on: bool) -> Result<(), DatapathError> {
        let done = if on { self.programs.set(0, &self.program, 0) } else { self.programs.clear_index(&0) };
        done.map_err(|error| DatapathError::Fill { map: map::FILL, why: chain(&error) })
    }
}

/// The kernel's table of named sources.
pub struct KernelSources(HashMap<MapData, [u8; 16], u8>);

impl KernelSources {
    /// Makes the table say `wanted`. Sources that stay are not touched.
    ///
    /// # Errors
    /// The kernel refuses, or there is no room: then frames of that source are left to the sockets.
    pub fn set(&mut self, wanted: &BTreeSet<Ipv6Addr>) -> Result<(), DatapathError> {
        let refused = |error: MapError| DatapathError::Fill { map: map::SOURCES, why: chain(&error) };
        let there: Vec<[u8; 16]> = self.0.keys().collect::<Result<_, _>>().map_err(refused)?;
        for source in there.iter().filter(|source| !wanted.contains(&Ipv6Addr::from(**source))) {
            self.0.remove(source).map_err(refused)?;
        }
        for source in wanted.iter().map(Ipv6Addr::octets).filter(|source| !there.contains(source)) {
            self.0.insert(source, 1, 0).map_err(refused)?;
        }
        Ok(())
    }
}

/// NACKs that the kernel hands over.
pub struct Events(RingBuf<MapData>);

impl Events {
    /// The next one, if there is one.
    pub fn take(&mut self) -> Option<Event> {
        let item = self.0.next()?;
        let bytes: &[u8] = &item;
        if bytes.len() < size_of::<Event>() {
            return None;
        }
        // SAFETY: long enough, as just checked, and made of integers.
        Some(unsafe { bytes.as_ptr().cast::<Event>().read_unaligned() })
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor lives as long as the ring buffer, which `self` owns.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn load(request: &Request<'_>) -> Result<Ebpf, DatapathError> {
    // 0 switches every level off, 4 is debug (aya-log's order).
    let log_level: u8 = if request.debug { 4 } else { 0 };
    let mut loader = EbpfLoader::new();
    loader
        .map_max_entries(map::RING, request.sizes.segments())
        .map_max_entries(map::INDEX, request.sizes.buckets)
        .map_max_entries(map::HOLD_DOWN, request.sizes.hold_down_words)
        .override_global("AYA_LOG_LEVEL", &log_level, true);
    for name in map::LIMITS {
        loader.map_max_entries(name, request.settings.limit_mask + 1);
    }
    let mut ebpf = loader.load(OBJECT).map_err(|error| DatapathError::Load(chain(&error)))?;
    for name in ["retry_role", "retry_nack"] {
        program(&mut ebpf, name)?.load().map_err(|error| DatapathError::Load(chain(&error)))?;
    }
    Ok(ebpf)
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, DatapathError> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| DatapathError::Load(format!("no program {name} in the object")))
}

/// One mapping of a whole array map.
fn mapped(ebpf: &Ebpf, name: &'static str, len: usize) -> Result<Memory, DatapathError> {
    let Some(Map::Array(data)) = ebpf.map(name) else {
        return Err(DatapathError::Map(name));
    };
    Memory::of_map(data.fd().as_fd(), len).map_err(|error| DatapathError::Fill { map: name, why: error.to_string() })
}

fn taken(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, DatapathError> {
    ebpf.take_map(name).ok_or(DatapathError::Map(name))
}

/// Entries in the order in which clones leave: other interfaces first, then the NACK's, so that the original, which goes
/// last, leaves by the NACK's interface wherever there is one.
fn fill_devmaps(ebpf: &mut Ebpf, request: &Request<'_>) -> Result<(), DatapathError> {
    let role = program(ebpf, "retry_role")?
        .fd()
        .and_then(|fd| Ok(fd.try_clone()?))
        .map_err(|error| DatapathError::Load(chain(&error)))?;
    let here = request.settings.nack_ifindex;
    for (name, answers, multicast) in map::BROADCASTS {
        let mut entries: Vec<u32> = Vec::new();
        if multicast {
            entries.extend(request.egress.iter().map(|egress| egress.ifindex).filter(|ifindex| *ifindex != here));
            entries.extend(request.egress.iter().map(|egress| egress.ifindex).filter(|ifindex| *ifindex == here));
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

/// Loads the program that stores frames of these groups.
fn load_fill(ebpf: &mut Ebpf, groups: &[u16]) -> Result<KernelFill, DatapathError> {
    let refused = |map| move |error: MapError| DatapathError::Fill { map, why: chain(&error) };
    let mut words = vec![0u64; 1 << 10];
    for group in groups {
        words[usize::from(group >> 6)] |= 1 << (group & 63);
    }
    let map = ebpf.map_mut(map::JOINED).ok_or(DatapathError::Map(map::JOINED))?;
    let mut joined: Array<_, u64> = Array::try_from(map).map_err(|_| DatapathError::Map(map::JOINED))?;
    for (place, word) in (0u32..).zip(words) {
        if word != 0 {
            joined.set(place, word, 0).map_err(refused(map::JOINED))?;
        }
    }
    let program = program(ebpf, "retry_fill")?;
    program.load().map_err(|error| DatapathError::Load(chain(&error)))?;
    let program =
        program.fd().and_then(|fd| Ok(fd.try_clone()?)).map_err(|error| DatapathError::Load(chain(&error)))?;
    let programs = ProgramArray::try_from(taken(ebpf, map::FILL)?).map_err(|_| DatapathError::Map(map::FILL))?;
    Ok(KernelFill { programs, program })
}

fn fill_egress(ebpf: &mut Ebpf, request: &Request<'_>) -> Result<HashMap<MapData, u32, EgressValue>, DatapathError> {
    let mut map = HashMap::try_from(taken(ebpf, map::EGRESS)?).map_err(|_| DatapathError::Map(map::EGRESS))?;
    for egress in request.egress {
        map.insert(egress.ifindex, EgressValue(egress.egress), 0)
            .map_err(|error| DatapathError::Fill { map: map::EGRESS, why: chain(&error) })?;
    }
    Ok(map)
}

fn attach(ebpf: &mut Ebpf, request: &Request<'_>, pins: &Pins) -> Result<Vec<FdLink>, DatapathError> {
    let (mode, mode_name) = match request.mode {
        Mode::Native => (XdpMode::Driver, "native"),
        Mode::Skb => (XdpMode::Skb, "skb"),
    };
    let program = program(ebpf, "retry_nack")?;
    let path = pins.path("retry_nack");
    program.pin(&path).map_err(|error| pin_error(&path, &error))?;
    let mut links = Vec::new();
    for (name, ifindex) in request.interfaces {
        let refused = |why: String| DatapathError::Attach { interface: name.clone(), mode: mode_name, why };
        let id = program.attach_to_if_index(*ifindex, mode).map_err(|error| refused(explain(&error)))?;
        let link = program.take_link(id).map_err(|error| refused(chain(&error)))?;
        // Without a link there is nothing to pin, and nothing that ends with the daemon.
        let link = FdLink::try_from(link).map_err(|_| {
            refused(
                "its kernel offers no BPF link for it: the driver has no native XDP; use -xdp skb or -xdp off"
                    .to_owned(),
            )
        })?;
        let path = pins.path(&format!("link-{name}"));
        let pinned = link.pin(&path).map_err(|error| pin_error(&path, &error))?;
        links.push(FdLink::from(pinned));
    }
    Ok(links)
}

/// What the system said about an attach, and what to do.
fn explain(error: &ProgramError) -> String {
    let errno = match error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    };
    let advice = match errno {
        Some(libc::EBUSY) => {
            "another XDP program is attached: remove it with `ip link set dev IFACE xdp off`, or use -xdp off"
        }
        Some(libc::ERANGE) => {
            "its MTU is too large for native XDP (veth 3520, virtio 3506, ixgbe 3050, i40e and ice 3046 bytes): lower it, or use -xdp skb or -xdp off"
        }
        Some(libc::EOPNOTSUPP) => "the driver has no native XDP, or not at this MTU: use -xdp skb or -xdp off",
        Some(libc::EPERM) => "CAP_NET_ADMIN and CAP_BPF are missing: run as root or grant them",
        _ => "use -xdp skb or -xdp off",
    };
    format!("{}; {advice}", chain(error))
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
