//! Two hosts on one veth pair, each with its NAPI on a core of its own: the load and its count on core 0, the server on
//! core 1. What runs there is what the cases compare.

use std::{
    net::{SocketAddrV6, UdpSocket},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use aya::{
    Ebpf, Pod,
    maps::{Array, MapData, PerCpuArray},
    programs::{Xdp, XdpMode},
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, CpuSet, sched_setaffinity, unshare},
    unistd::Pid,
};
use retry_common::{checksum, key::FrameKey, wire::nack::Nack};

use retry_testbed::{
    fabric::{Fabric, Host, INTERFACE},
    frames::{Flow, Kind},
    journal::{Journal, Verdict},
    netns::Netns,
    publish::Publisher,
    testrun,
};

/// Environment variable with the path of the bench's kernel object.
pub(super) const OBJECT_VARIABLE: &str = "RETRY_BENCH_OBJECT";
/// Core of the load and of the count of what comes back.
const LOAD_CORE: usize = 0;
/// Core of the server.
const SERVER_CORE: usize = 1;
/// The flow that is asked for.
const FLOW: u64 = 0xbe4c_0000_0000_0001;
/// Source port of the NACKs.
const PORT: u16 = 40_000;
const PACKET_LEN: usize = 126;
const WORDS: usize = PACKET_LEN.div_ceil(8);

#[repr(C)]
#[derive(Clone, Copy)]
struct Template {
    words: [u64; WORDS],
    first: u64,
    count: u64,
}
// SAFETY: words without padding.
unsafe impl Pod for Template {}

/// What came back, as the bench's program counts it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Answers {
    /// ACKs.
    pub(super) acks: u64,
    /// MISSes.
    pub(super) misses: u64,
    /// THROTTLEDs.
    pub(super) throttled: u64,
    /// Frames to us.
    pub(super) unicast_frames: u64,
    /// Frames to a group.
    pub(super) multicast_frames: u64,
    /// NACKs that came back as they left.
    pub(super) reflected: u64,
    /// Anything else.
    pub(super) other: u64,
}
// SAFETY: words without padding.
unsafe impl Pod for Answers {}

impl Answers {
    fn since(&self, before: &Self) -> Self {
        Self {
            acks: self.acks - before.acks,
            misses: self.misses - before.misses,
            throttled: self.throttled - before.throttled,
            unicast_frames: self.unicast_frames - before.unicast_frames,
            multicast_frames: self.multicast_frames - before.multicast_frames,
            reflected: self.reflected - before.reflected,
            other: self.other - before.other,
        }
    }
}

/// What one stretch of load gave.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    /// What came back.
    pub(super) answers: Answers,
    /// How long it took.
    pub(super) time: Duration,
    /// Time on a core of the server's NAPI thread.
    pub(super) napi: Duration,
}

impl Load {
    /// Of `count` things in this stretch, how many a second.
    #[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
    pub(super) fn rate(&self, count: u64) -> f64 {
        count as f64 / self.time.as_secs_f64()
    }
}

/// The two hosts, and the load.
pub(super) struct Rig {
    fabric: Arc<Fabric>,
    client: Ebpf,
    template: Array<MapData, Template>,
    answers: PerCpuArray<MapData, Answers>,
    napi: PathBuf,
}

impl Rig {
    /// Makes the hosts and pins their NAPI threads.
    pub(super) fn new() -> Result<Self> {
        let fabric = Arc::new(Fabric::flat(1500)?);
        let endpoint = threaded_napi(&fabric.host("endpoint")?.ns, SERVER_CORE)?;
        threaded_napi(&fabric.host("client")?.ns, LOAD_CORE)?;
        let mut client = Ebpf::load_file(object()?).context("load the bench's kernel object")?;
        for name in ["bench_count", "bench_generate"] {
            program(&mut client, name)?.load()?;
        }
        let template = Array::try_from(client.take_map("TEMPLATE").context("no map TEMPLATE")?)?;
        let answers = PerCpuArray::try_from(client.take_map("ANSWERS").context("no map ANSWERS")?)?;
        Ok(Self { fabric, client, template, answers, napi: Path::new("/proc").join(endpoint.to_string()) })
    }

    /// The two hosts, for a daemon that outlives a borrow of the rig.
    pub(super) fn fabric(&self) -> Arc<Fabric> {
        Arc::clone(&self.fabric)
    }

    /// The host that answers.
    pub(super) fn endpoint(&self) -> Result<&Host> {
        self.fabric.host("endpoint")
    }

    fn client_host(&self) -> Result<&Host> {
        self.fabric.host("client")
    }

    /// Publishes `count` frames of `frame_len` bytes from the client, numbered from 1, no faster than a careful daemon stores them.
    pub(super) fn publish(&self, count: u64, frame_len: usize) -> Result<Arc<Journal>> {
        let journal = Arc::new(Journal::default());
        let publisher = Publisher::open(&self.client_host()?.ns, Arc::clone(&journal))?;
        let payload = frame_len.checked_sub(Kind::Tx.header_length()).context("shorter than its header")?;
        let mut flow = Flow::new(Kind::Tx, 0, 2, payload..=payload).with_hash_key(FLOW);
        for number in 0..count {
            publisher.publish(&mut flow)?;
            if number % 64 == 63 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(journal)
    }

    /// Asks for a few frames by socket and compares every byte that comes back; a wrong answer ends the bench.
    pub(super) fn check(&self, journal: &Journal, count: u64) -> Result<()> {
        let host = self.client_host()?;
        let to = self.endpoint()?.nack_address();
        let socket = host.ns.enter(|| UdpSocket::bind(SocketAddrV6::new(host.addr, 0, 0, 0)))?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        let mut buffer = [0; 2048];
        for seq_num in (1..=count).step_by(usize::try_from(count / 16)?.max(1)) {
            let key = FrameKey::new(FLOW, seq_num);
            socket.send_to(&Nack { flags: 0, key, subtree_id: [0; 32] }.to_bytes(), to)?;
            let (mut frame, mut ack) = (false, false);
            while !(frame && ack) {
                let len = socket.recv(&mut buffer).with_context(|| format!("no whole answer for {key}"))?;
                if len == 16 {
                    ensure!(buffer[6] == 0x12 && buffer[8..16] == seq_num.to_be_bytes(), "a wrong answer for {key}");
                    ack = true;
                } else {
                    ensure!(journal.compare(key, &buffer[..len]) == Verdict::Same, "wrong bytes for {key}");
                    frame = true;
                }
            }
        }
        Ok(())
    }

    /// Attaches the shortest reflector to the server's interface for as long as the returned value lives.
    pub(super) fn reflector(&self) -> Result<Ebpf> {
        let mut object = Ebpf::load_file(object()?)?;
        let index = self.endpoint()?.ifindex;
        let reflect = program(&mut object, "bench_reflect")?;
        reflect.load()?;
        self.endpoint()?.ns.enter(|| reflect.attach_to_if_index(index, XdpMode::Driver))?;
        Ok(object)
    }

    /// Counts what comes back instead of handing it to the client's stack, for as long as `work` runs.
    pub(super) fn counting<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let index = self.client_host()?.ifindex;
        let count = program(&mut self.client, "bench_count")?;
        let link = self.fabric.host("client")?.ns.enter(|| count.attach_to_if_index(index, XdpMode::Driver))?;
        let result = work(self);
        let ns = &self.fabric.host("client")?.ns;
        let count = program(&mut self.client, "bench_count")?;
        ns.enter(|| count.detach(link))?;
        result
    }

    /// Sends NACKs for frames 1 to `frames` over and over for `time`, `burst` in one go (about 27 ms pass between two bursts).
    pub(super) fn load(&mut self, frames: u64, burst: u32, time: Duration) -> Result<Load> {
        let packet = self.nack_packet()?;
        let mut words = [0; WORDS];
        for (word, bytes) in words.iter_mut().zip(packet.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_ne_bytes(whole);
        }
        self.template.set(0, Template { words, first: 1, count: frames }, 0)?;
        let index = self.client_host()?.ifindex;
        let ns_handle = self.client_host()?.ns.handle()?;
        let before = (self.answers()?, on_core(&self.napi)?);
        let start = Instant::now();
        let generate: &Xdp = program(&mut self.client, "bench_generate")?;
        std::thread::scope(|scope| {
            scope
                .spawn(|| -> Result<()> {
                    nix::sched::setns(&ns_handle, CloneFlags::CLONE_NEWNET)?;
                    pin(Pid::from_raw(0), LOAD_CORE)?;
                    while start.elapsed() < time {
                        testrun::run_live(generate, &packet, index, burst)?;
                    }
                    Ok(())
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        let time = start.elapsed();
        let napi = on_core(&self.napi)?.saturating_sub(before.1);
        // What is still queued in a socket when the load ends is answered, but not in this time.
        let answers = self.answers()?.since(&before.0);
        Ok(Load { answers, time, napi })
    }

    fn answers(&self) -> Result<Answers> {
        let zero = Answers::default();
        let cpus = self.answers.get(&0, 0)?;
        Ok(cpus.iter().fold(zero, |sum, cpu| Answers {
            acks: sum.acks + cpu.acks,
            misses: sum.misses + cpu.misses,
            throttled: sum.throttled + cpu.throttled,
            unicast_frames: sum.unicast_frames + cpu.unicast_frames,
            multicast_frames: sum.multicast_frames + cpu.multicast_frames,
            reflected: sum.reflected + cpu.reflected,
            other: sum.other + cpu.other,
        }))
    }

    /// A NACK for SeqNum 0 with a right checksum; the generator fills the number in.
    fn nack_packet(&self) -> Result<Vec<u8>> {
        let (from, to) = (self.client_host()?, self.endpoint()?);
        let nack = Nack { flags: 0, key: FrameKey::new(FLOW, 0), subtree_id: [0; 32] }.to_bytes();
        let length = u16::try_from(nack.len() + 8)?.to_be_bytes();
        let port = to.nack_address().port();
        let checksum =
            checksum::udp_ipv6(&from.addr.octets(), &to.addr.octets(), PORT, port, 64, checksum::partial(&nack));
        let mut packet = Vec::with_capacity(PACKET_LEN);
        packet.extend(to.mac);
        packet.extend(from.mac);
        packet.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        packet.extend(length);
        packet.extend([17, 64]);
        packet.extend(from.addr.octets());
        packet.extend(to.addr.octets());
        packet.extend(PORT.to_be_bytes());
        packet.extend(port.to_be_bytes());
        packet.extend(length);
        packet.extend(checksum.to_be_bytes());
        packet.extend(nack);
        ensure!(packet.len() == PACKET_LEN, "a NACK packet of {} bytes", packet.len());
        Ok(packet)
    }
}

/// Puts every thread of a process on the server's core.
pub(super) fn on_server_core(pid: u32) -> Result<()> {
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let id: i32 = task?.file_name().to_string_lossy().parse()?;
        pin(Pid::from_raw(id), SERVER_CORE)?;
    }
    Ok(())
}

fn object() -> Result<PathBuf> {
    let path = std::env::var_os(OBJECT_VARIABLE).map(PathBuf::from);
    path.with_context(|| format!("{OBJECT_VARIABLE} does not name the bench's kernel object; use `cargo xtask bench`"))
}

fn program<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    Ok(object.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?)
}

fn pin(pid: Pid, core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    sched_setaffinity(pid, &set).with_context(|| format!("pin {pid} to core {core}"))
}

/// Gives the interface of a namespace a NAPI thread of its own, pinned to `core`. Returns the thread's id.
fn threaded_napi(ns: &Netns, core: usize) -> Result<i32> {
    let known = napi_threads()?;
    // sysfs shows the network namespace of whoever mounted it.
    ns.enter(|| -> Result<()> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        let sysfs = tempfile::tempdir()?;
        mount(Some("sysfs"), sysfs.path(), Some("sysfs"), MsFlags::empty(), none)?;
        std::fs::write(sysfs.path().join("class/net").join(INTERFACE).join("threaded"), "1")
            .context("give veth a NAPI thread")?;
        nix::mount::umount(sysfs.path())?;
        Ok(())
    })?;
    // A veth's NAPI exists only while it has GRO or XDP: the testbed switches GRO on.
    let new: Vec<i32> = napi_threads()?.into_iter().filter(|id| !known.contains(id)).collect();
    let [thread] = new[..] else { bail!("expected one new NAPI thread, found {}", new.len()) };
    pin(Pid::from_raw(thread), core)?;
    Ok(thread)
}

fn napi_threads() -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        // A process may end while the directory is read.
        let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if name.starts_with("napi/")
            && let Ok(id) = entry.file_name().to_string_lossy().parse()
        {
            found.push(id);
        }
    }
    Ok(found)
}

/// Time on a core of a process's first thread.
fn on_core(process: &Path) -> Result<Duration> {
    let text = std::fs::read_to_string(process.join("schedstat"))?;
    let nanoseconds = text.split_whitespace().next().context("an empty schedstat")?.parse()?;
    Ok(Duration::from_nanos(nanoseconds))
}
