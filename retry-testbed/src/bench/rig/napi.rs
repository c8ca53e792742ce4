//! Where work runs: NAPI threads on cores of their own, what they took, and how the client's end is moderated.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, CpuSet, sched_setaffinity, unshare},
    unistd::Pid,
};
use retry_testbed::{
    net::{fabric::INTERFACE, netns::Netns},
    scheduling::schedule,
};

/// Core of the load and of the count of what comes back.
pub(crate) const LOAD_CORE: usize = 0;
/// Core of the server.
pub(crate) const SERVER_CORE: usize = 1;

/// Puts a thread on one core; 0 is the calling thread.
pub(crate) fn pin(thread: i32, core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    sched_setaffinity(Pid::from_raw(thread), &set).with_context(|| format!("pin {thread} to core {core}"))
}

/// Puts every thread of a process on the server's core.
pub(crate) fn on_server_core(pid: u32) -> Result<()> {
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        pin(task?.file_name().to_string_lossy().parse()?, SERVER_CORE)?;
    }
    Ok(())
}

/// The thread of a process that has this name.
pub(crate) fn thread_of(pid: u32, name: &str) -> Result<Option<i32>> {
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?;
        if std::fs::read_to_string(task.path().join("comm"))?.trim() == name {
            return Ok(Some(task.file_name().to_string_lossy().parse()?));
        }
    }
    Ok(None)
}

/// Keeps the server's core from going to sleep as long as this lives: a thread that turns when no other thread wants the core.
///
/// A virtual core that sleeps is woken through its host, in up to a tenth of a millisecond: more than a queue of 256 packets
/// lasts at a million and a half a second, and no doing of the server.
pub(crate) struct Awake {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Awake {
    /// Starts the thread.
    pub(crate) fn new() -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (told, started) = mpsc::channel();
        let until = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let ready = pin(0, SERVER_CORE).and_then(|()| schedule(0, libc::SCHED_IDLE, 0));
            let is_ready = ready.is_ok();
            if told.send(ready).is_err() || !is_ready {
                return;
            }
            while !until.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        started.recv().context("the thread that keeps the core awake")??;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It ends by itself, and has nothing to tell.
            let _ = thread.join();
        }
    }
}

/// Gives the interface of a namespace a NAPI thread of its own, pinned to `core`. Returns the thread's id.
pub(crate) fn threaded(ns: &Netns, core: usize) -> Result<i32> {
    let known = threads()?;
    // A veth's NAPI exists only while it has GRO or XDP: the testbed switches GRO on.
    write_sysfs(ns, &[("threaded", "1")])?;
    let new: Vec<i32> = threads()?.into_iter().filter(|id| !known.contains(id)).collect();
    let [thread] = new[..] else { bail!("expected one new NAPI thread, found {}", new.len()) };
    pin(thread, core)?;
    super::priority::raise(thread)?;
    Ok(thread)
}

/// Lets the interface of a namespace gather packets for 20 µs before its NAPI runs, as a NIC under load does, or not.
pub(crate) fn moderate(ns: &Netns, on: bool) -> Result<()> {
    let (polls, timeout) = if on { ("2", "20000") } else { ("0", "0") };
    write_sysfs(ns, &[("napi_defer_hard_irqs", polls), ("gro_flush_timeout", timeout)])
}

/// Writes attributes of `eth0` of a namespace.
fn write_sysfs(ns: &Netns, attributes: &[(&str, &str)]) -> Result<()> {
    // sysfs shows the network namespace of the process that mounted it.
    ns.enter(|| -> Result<()> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        let sysfs = tempfile::tempdir()?;
        mount(Some("sysfs"), sysfs.path(), Some("sysfs"), MsFlags::empty(), none)?;
        for (name, value) in attributes {
            std::fs::write(sysfs.path().join("class/net").join(INTERFACE).join(name), value)
                .with_context(|| format!("write {value} to {name} of {INTERFACE}"))?;
        }
        nix::mount::umount(sysfs.path())?;
        Ok(())
    })
}

fn threads() -> Result<Vec<i32>> {
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

/// Time on a core of a thread.
pub(crate) fn on_core(thread: i32) -> Result<Duration> {
    let path = Path::new("/proc").join(thread.to_string()).join("schedstat");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let nanoseconds = text.split_whitespace().next().context("an empty schedstat")?.parse()?;
    Ok(Duration::from_nanos(nanoseconds))
}
