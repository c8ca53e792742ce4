//! The daemon's side of the holder: finds it, or starts it.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Uid;
use socket2::{Domain, Socket, Type};
use thiserror::Error;

use super::holder::VERB;
use super::protocol::{
    self, BUSY, COMMIT, DESCRIPTOR, DONE, KEEP, Kind, MOST_AT_ONCE, Packet, RELEASE, SERVED, TAKE, VERSION,
};

/// How long the holder may take for an answer. It has nothing else to do.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two looks whether a holder that was started listens.
const LOOK: Duration = Duration::from_millis(5);

/// This program has the verb [`VERB`]: a test's program has not, and must not be started for it.
static HAS_VERB: AtomicBool = AtomicBool::new(false);

/// Says that this program becomes a holder with the verb `hold` ([`super::hold`]).
pub fn has_hold_verb() {
    HAS_VERB.store(true, Ordering::Relaxed);
}

/// Why there is no holder.
#[derive(Debug, Error)]
pub(crate) enum LinkError {
    /// None runs.
    #[error("no holder runs")]
    Absent,
    /// Another daemon has it.
    #[error("another daemon on this interface uses the holder")]
    Busy,
    /// The name is another user's.
    #[error("user {0} has the name of the holder: find the process with `ss -xpa` and stop it")]
    Foreign(u32),
    /// It speaks another version.
    #[error("the holder is of another version")]
    Version,
    /// It could not be started.
    #[error("the holder cannot be started: {0}")]
    Start(String),
    /// The system's words.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A connection to the holder.
#[derive(Debug)]
pub(super) struct Link {
    socket: Socket,
    /// The process, where this daemon has started it.
    child: Option<Child>,
}

impl Link {
    /// Connects to the holder of an interface, in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`LinkError`].
    pub(super) fn find(interface: &str) -> Result<Self, LinkError> {
        let socket = connect(interface)?;
        let greeting = expect(&socket)?;
        match greeting.bytes() {
            [SERVED, VERSION] => Ok(Self { socket, child: None }),
            [SERVED, ..] => Err(LinkError::Version),
            [BUSY, ..] => Err(LinkError::Busy),
            _ => Err(LinkError::Io(ErrorKind::InvalidData.into())),
        }
    }

    /// As [`Link::find`]; starts a holder where none runs, also in the place of one of another version. What that one holds is
    /// closed: the daemon has joined by itself when it gets here.
    ///
    /// # Errors
    /// As [`Link::find`], or [`LinkError::Start`].
    pub(super) fn find_or_start(interface: &str, lease: Duration) -> Result<Self, LinkError> {
        match Self::find(interface) {
            Err(LinkError::Absent) => {}
            Err(LinkError::Version) => release(interface)?,
            other => return other,
        }
        let mut child = start(interface, lease)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            thread::sleep(LOOK);
            match Self::find(interface) {
                Ok(link) => return Ok(Self { child: Some(child), ..link }),
                Err(LinkError::Absent) if Instant::now() < deadline => {}
                Err(error) => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(error);
                }
            }
            if let Some(status) = child.try_wait()? {
                return Err(LinkError::Start(status.to_string()));
            }
        }
    }

    /// What is held besides memberships.
    ///
    /// # Errors
    /// What the socket returns; the link is of no use then.
    pub(super) fn take(&self) -> io::Result<Vec<(Kind, OwnedFd)>> {
        protocol::send(&self.socket, &[TAKE], &[])?;
        let mut taken = Vec::new();
        loop {
            let packet = expect(&self.socket)?;
            match *packet.bytes() {
                [DONE] => return Ok(taken),
                [DESCRIPTOR, kind] => {
                    let kind = Kind::of(kind).ok_or(ErrorKind::InvalidData)?;
                    taken.extend(packet.fds.into_iter().map(|fd| (kind, fd)));
                }
                _ => return Err(ErrorKind::InvalidData.into()),
            }
        }
    }

    /// Gives the holder a new set, which replaces the present one.
    ///
    /// # Errors
    /// As [`Link::take`]; then the holder holds the present set.
    pub(super) fn replace(&self, set: &[(Kind, BorrowedFd<'_>)], lease: Duration) -> io::Result<()> {
        for kind in Kind::ALL {
            let fds: Vec<BorrowedFd<'_>> = set.iter().filter(|one| one.0 == kind).map(|one| one.1).collect();
            for some in fds.chunks(MOST_AT_ONCE) {
                protocol::send(&self.socket, &[KEEP, kind.byte()], some)?;
            }
        }
        let lease = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX).to_be_bytes();
        protocol::send(&self.socket, &[&[COMMIT], &lease[..]].concat(), &[])?;
        self.await_done()
    }

    /// Ends the holder: what only it holds is closed.
    ///
    /// # Errors
    /// As [`Link::take`].
    pub(super) fn release(self) -> io::Result<()> {
        end(&self.socket)
    }

    /// The process, where this daemon has started it: to be waited for once it has ended.
    pub(super) fn into_child(self) -> Option<Child> {
        self.child
    }

    /// False when the holder has ended.
    pub(super) fn is_open(&self) -> bool {
        let mut wait = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        // It says nothing that was not asked for, so anything is the end.
        poll(&mut wait, PollTimeout::ZERO) == Ok(0)
    }

    fn await_done(&self) -> io::Result<()> {
        match expect(&self.socket)?.bytes() {
            [DONE] => Ok(()),
            _ => Err(ErrorKind::InvalidData.into()),
        }
    }
}

/// Ends the holder of an interface, of whatever version, and waits until its name is free.
///
/// # Errors
/// [`LinkError`]: [`LinkError::Absent`] when none runs.
pub(super) fn release(interface: &str) -> Result<(), LinkError> {
    let socket = connect(interface)?;
    if let [BUSY, ..] = expect(&socket)?.bytes() {
        return Err(LinkError::Busy);
    }
    Ok(end(&socket)?)
}

/// The holder closes the connection with its listener, as it ends.
fn end(socket: &Socket) -> io::Result<()> {
    protocol::send(socket, &[RELEASE], &[])?;
    while protocol::receive(socket)?.is_some() {}
    Ok(())
}

fn connect(interface: &str) -> Result<Socket, LinkError> {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    match socket.connect(&protocol::address(interface)?) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Err(LinkError::Absent),
        Err(error) => return Err(error.into()),
    }
    // Of the process that listens, as it was when it began to.
    let user = getsockopt(&socket, PeerCredentials).map_err(io::Error::from)?.uid();
    if user != Uid::effective().as_raw() {
        return Err(LinkError::Foreign(user));
    }
    Ok(socket)
}

/// The next packet.
fn expect(socket: &Socket) -> io::Result<Packet> {
    protocol::receive(socket)?.ok_or_else(|| ErrorKind::UnexpectedEof.into())
}

/// Starts this very program as a holder, also where its file has been replaced.
fn start(interface: &str, lease: Duration) -> Result<Child, LinkError> {
    if !HAS_VERB.load(Ordering::Relaxed) {
        return Err(LinkError::Start(format!("this program has no verb {VERB}")));
    }
    Command::new("/proc/self/exe")
        .arg0("retry-endpoint")
        .args([VERB, interface, &lease.as_millis().to_string()])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| LinkError::Start(error.to_string()))
}
