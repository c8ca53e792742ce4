//! Two hosts on one veth pair, each with its NAPI on a core of its own: the load and its count on core 0, the server on
//! core 1. What runs there is what the cases compare; several rigs stand side by side, and all but one are idle.

mod answers;
mod load;
mod napi;
mod pages;
mod priority;
mod samples;
mod template;

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context, Result};
use aya::{
    Ebpf,
    maps::{Array, MapData, PerCpuArray, PerCpuValues},
    programs::{Xdp, XdpMode},
};
use retry_testbed::{
    net::fabric::{Fabric, Host},
    scheduling::urgent,
    xdp::testrun,
};

pub(crate) use self::{
    answers::Answers,
    load::{Load, Stretch},
    napi::{Awake, LOAD_CORE, SERVER_CORE, on_core, on_server_core, pin, thread_of},
    pages::ShortLists,
    priority::Raised,
    template::{Ask, FLOW, Order, Sources, frame},
};
use self::{
    load::Progress,
    samples::Sample,
    template::{FrameTemplate, NackTemplate},
};

/// Environment variable with the path of the bench's kernel object.
const OBJECT_VARIABLE: &str = "RETRY_BENCH_OBJECT";

/// The two hosts, and the load.
pub(crate) struct Rig {
    fabric: Arc<Fabric>,
    client: Ebpf,
    nacks: Array<MapData, NackTemplate>,
    frames: Array<MapData, FrameTemplate>,
    progress: PerCpuArray<MapData, Progress>,
    answers: PerCpuArray<MapData, Answers>,
    seen: PerCpuArray<MapData, u64>,
    samples: Array<MapData, Sample>,
    server_napi: i32,
}

impl Rig {
    /// Makes the hosts on a link of this MTU, pins their NAPI threads and counts at the client's end from now on.
    pub(crate) fn new(mtu: u16) -> Result<Self> {
        let fabric = Arc::new(Fabric::flat(mtu)?);
        let host = fabric.host("client")?;
        let server_napi = napi::threaded(&fabric.host("endpoint")?.ns, SERVER_CORE)?;
        let client_napi = napi::threaded(&host.ns, LOAD_CORE)?;
        napi::moderate(&host.ns, true)?;
        // It shares a core with the generator: what it does not take in at once is lost.
        urgent(client_napi, true)?;
        let mut client = Ebpf::load_file(object()?).context("load the bench's kernel object")?;
        for name in ["bench_count", "bench_nacks", "bench_frames"] {
            program(&mut client, name)?.load()?;
        }
        let count = program(&mut client, "bench_count")?;
        host.ns.enter(|| count.attach_to_if_index(host.ifindex, XdpMode::Driver))?;
        let mut map = |name: &str| client.take_map(name).with_context(|| format!("no map {name}"));
        Ok(Self {
            nacks: Array::try_from(map("NACKS")?)?,
            frames: Array::try_from(map("FRAMES")?)?,
            progress: PerCpuArray::try_from(map("PROGRESS")?)?,
            answers: PerCpuArray::try_from(map("ANSWERS")?)?,
            seen: PerCpuArray::try_from(map("SEEN")?)?,
            samples: Array::try_from(map("SAMPLES")?)?,
            fabric,
            client,
            server_napi,
        })
    }

    /// The two hosts, for a daemon that outlives a borrow of the rig.
    pub(crate) fn fabric(&self) -> Arc<Fabric> {
        Arc::clone(&self.fabric)
    }

    /// The host that answers.
    pub(crate) fn endpoint(&self) -> Result<&Host> {
        self.fabric.host("endpoint")
    }

    /// The host that asks.
    pub(crate) fn client(&self) -> Result<&Host> {
        self.fabric.host("client")
    }

    /// Attaches the shortest reflector to the server's interface for as long as the returned value lives.
    pub(crate) fn reflector(&self) -> Result<Reflector> {
        let mut object = Ebpf::load_file(object()?)?;
        let index = self.endpoint()?.ifindex;
        let reflect = program(&mut object, "bench_reflect")?;
        reflect.load()?;
        self.endpoint()?.ns.enter(|| reflect.attach_to_if_index(index, XdpMode::Driver))?;
        let reflected = PerCpuArray::try_from(object.take_map("REFLECTED").context("no map REFLECTED")?)?;
        Ok(Reflector { _object: object, reflected })
    }

    /// Makes the client's end a measuring one, without moderation; or ends that.
    pub(crate) fn attentive(&self, on: bool) -> Result<()> {
        napi::moderate(&self.client()?.ns, !on)
    }

    /// Lets the server's NAPI run before all threads, as the softirq does in whose place it stands; or ends that.
    pub(crate) fn napi_first(&self, on: bool) -> Result<()> {
        urgent(self.server_napi, on)
    }

    fn answers(&self) -> Result<Answers> {
        let cpus = self.answers.get(&0, 0)?;
        Ok(cpus.iter().fold(Answers::default(), |sum, cpu| sum.plus(cpu)))
    }

    fn seen(&self) -> Result<u64> {
        Ok(self.seen.get(&0, 0)?.iter().sum())
    }

    /// What the generator has done on the load's core.
    fn progress(&self) -> Result<Progress> {
        Ok(self.progress.get(&0, 0)?.get(LOAD_CORE).copied().unwrap_or_default())
    }

    /// Starts a new stretch; the count of all that was sent goes on.
    fn new_stretch(&mut self) -> Result<Progress> {
        let cpus = self.progress.get(&0, 0)?;
        let fresh: Vec<Progress> = cpus.iter().map(Progress::fresh).collect();
        self.progress.set(0, PerCpuValues::try_from(fresh)?, 0)?;
        self.progress()
    }
}

/// The shortest reflector, attached.
pub(crate) struct Reflector {
    _object: Ebpf,
    reflected: PerCpuArray<MapData, u64>,
}

impl Reflector {
    /// Packets sent back so far, whether the peer took them or not.
    pub(crate) fn count(&self) -> Result<u64> {
        Ok(self.reflected.get(&0, 0)?.iter().sum())
    }
}

/// A generator and where it sends from, for a thread of its own.
struct Generator<'a> {
    program: &'a Xdp,
    packet: Vec<u8>,
    index: u32,
}

impl Generator<'_> {
    /// Sends `count` packets, `batch` at a time.
    fn send(&self, count: u32, batch: u32) -> Result<()> {
        testrun::run_live_in_batches(self.program, &self.packet, self.index, count, batch)?;
        Ok(())
    }
}

fn object() -> Result<PathBuf> {
    let path = std::env::var_os(OBJECT_VARIABLE).map(PathBuf::from);
    path.with_context(|| format!("{OBJECT_VARIABLE} does not name the bench's kernel object; use `cargo xtask bench`"))
}

fn program<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    Ok(object.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?)
}
