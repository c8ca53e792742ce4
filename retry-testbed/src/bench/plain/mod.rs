//! The reference `plain`: a careful server without eBPF, as a good engineer would write it. One thread on the server's
//! core, `recvmmsg` and `sendmmsg` in batches of 64, frames sent from where they stand, an open-addressed index, a token
//! bucket for each address and a window for each frame. It has nothing that a measurement does not ask for.

mod batch;
mod fill;
mod limits;
mod log;
mod serve;

use std::{
    net::UdpSocket,
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use retry_testbed::net::fabric::Fabric;

pub(crate) use self::serve::Answering;
use super::rig::{SERVER_CORE, on_core, pin};

/// How long a thread waits before it looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);

/// A server that runs until this is dropped.
pub(crate) struct Plain {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    id: AtomicI32,
    stored: AtomicU64,
}

impl Plain {
    /// Answers NACKs for frames 1 to `frames`, of `length` bytes each, on the endpoint's NACK address.
    pub(crate) fn answering(fabric: &Arc<Fabric>, frames: u64, length: usize, answering: Answering) -> Result<Self> {
        let index = fabric.host("endpoint")?.ifindex;
        let to = fabric.host("endpoint")?.nack_address();
        Self::start(fabric, move |shared| serve::run(shared, to, index, frames, length, answering))
    }

    /// Receives what comes to the data group and stores it.
    pub(crate) fn filling(fabric: &Arc<Fabric>, frames: usize, length: usize) -> Result<Self> {
        let index = fabric.host("endpoint")?.ifindex;
        Self::start(fabric, move |shared| fill::run(shared, index, frames, length))
    }

    /// Runs a server in the endpoint's namespace and waits until it has its socket.
    fn start(fabric: &Arc<Fabric>, work: impl FnOnce(&Shared) -> Result<()> + Send + 'static) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let (namespace, inside) = (fabric.host("endpoint")?.ns.handle()?, Arc::clone(&shared));
        let thread = std::thread::Builder::new().name("plain".to_owned()).spawn(move || -> Result<()> {
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            pin(0, SERVER_CORE)?;
            work(&inside)
        })?;
        while shared.id.load(Ordering::Acquire) == 0 && !thread.is_finished() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut plain = Self { shared, thread: Some(thread) };
        if plain.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            plain.end()?;
            anyhow::bail!("the plain server ended at its start");
        }
        Ok(plain)
    }

    /// Time of its thread on a core so far.
    pub(crate) fn time(&self) -> Result<Duration> {
        on_core(self.shared.id.load(Ordering::Acquire))
    }

    /// Frames stored so far.
    pub(crate) fn stored(&self) -> u64 {
        self.shared.stored.load(Ordering::Acquire)
    }

    /// Ends it and says how that went.
    pub(crate) fn end(&mut self) -> Result<()> {
        self.shared.stop.store(true, Ordering::Release);
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).context("the plain server")
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("{error:#}");
        }
    }
}

impl Shared {
    /// The socket is there: the load may come.
    fn ready(&self) {
        self.id.store(nix::unistd::gettid().as_raw(), Ordering::Release);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

/// A receive buffer of this size, as root may have it, and a timeout so that the thread can end.
fn prepare(socket: &UdpSocket, receive_buffer: i32) -> Result<()> {
    // SAFETY: the option is one integer, and its length is passed with it.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const receive_buffer).cast(),
            libc::socklen_t::try_from(size_of::<i32>())?,
        )
    };
    nix::errno::Errno::result(done).context("SO_RCVBUFFORCE")?;
    socket.set_read_timeout(Some(LOOK))?;
    Ok(())
}
