//! The holder: a small process that outlives the daemon and keeps descriptors open, where no service manager does.
//!
//! The daemon starts it from its own program, `retry-endpoint hold INTERFACE LEASE`, and connects. While no daemon is
//! connected for longer than the lease, the holder ends, and so it does at SIGTERM: the kernel then closes what it held. It
//! has one thread, waits in `poll` alone, and keeps at most [`MOST`] descriptors for two sets.

use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::{Uid, setsid};
use socket2::{Domain, Socket, Type};

use super::protocol::{self, BUSY, COMMIT, DESCRIPTOR, DONE, KEEP, Kind, Packet, RELEASE, SERVED, TAKE, VERSION};
use crate::privileges;

/// The verb by which the program becomes a holder.
pub(super) const VERB: &str = "hold";
/// Descriptors of one set at most: 16,000 groups from 100 sources take some 800.
const MOST: usize = 4_096;
/// How long a holder that holds nothing waits for a daemon: the one that has started it may have ended meanwhile.
const UNUSED: Duration = Duration::from_secs(1);
/// Connections that wait at most while one is served.
const BACKLOG: i32 = 8;

/// `retry-endpoint hold INTERFACE LEASE`: holds until the lease is over. For the daemon alone: it says nothing, and ends with 1
/// when the name is taken.
#[must_use]
pub fn main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let interface = arguments.next().and_then(|text| text.into_string().ok());
    let lease = arguments.next().and_then(|text| text.to_str()?.parse().ok()).map(Duration::from_millis);
    let (Some(interface), Some(lease)) = (interface, lease) else {
        return ExitCode::from(2);
    };
    match become_holder(&interface) {
        Ok(listener) => {
            Holder::new(lease).serve(&listener);
            ExitCode::SUCCESS
        }
        Err(_) => ExitCode::FAILURE,
    }
}

/// Cuts what ties this process to the daemon that started it, and listens.
fn become_holder(interface: &str) -> io::Result<Socket> {
    // The daemon's descriptors are all closed at exec, but for those that it inherited open.
    // SAFETY: takes three numbers; nothing of this process has opened a descriptor above 2 yet.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    if closed != 0 {
        return Err(io::Error::last_os_error());
    }
    // A signal for the daemon's process group is not for the holder.
    setsid()?;
    // It sends and receives descriptors, and no more.
    privileges::give_up_all()?;
    nix::sys::prctl::set_name(c"retry-hold")?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    listen(interface)
}

/// Listens at the name of the interface.
///
/// # Errors
/// EADDRINUSE when another holder, or another user, has the name.
pub(super) fn listen(interface: &str) -> io::Result<Socket> {
    let listener = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    listener.bind(&protocol::address(interface)?)?;
    listener.listen(BACKLOG)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// What is held, and for which daemon.
pub(super) struct Holder {
    held: Vec<(Kind, OwnedFd)>,
    /// What the connected daemon has sent of the next set.
    next: Vec<(Kind, OwnedFd)>,
    daemon: Option<Socket>,
    lease: Duration,
    /// When the holder ends, while no daemon is connected.
    until: Instant,
}

/// Whether the holder goes on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum After {
    GoOn,
    Disconnect,
    End,
}

impl Holder {
    /// Holds nothing yet.
    pub(super) fn new(lease: Duration) -> Self {
        Self { held: Vec::new(), next: Vec::new(), daemon: None, lease, until: Instant::now() + UNUSED }
    }

    /// Serves until the lease is over, or a daemon ends it.
    pub(super) fn serve(mut self, listener: &Socket) {
        loop {
            let left = match &self.daemon {
                Some(_) => PollTimeout::NONE,
                None => match self.until.checked_duration_since(Instant::now()) {
                    // Rounded up: a holder that is early would poll without waiting.
                    Some(left) => (left + Duration::from_millis(1)).try_into().unwrap_or(PollTimeout::MAX),
                    None => return,
                },
            };
            let mut waits = vec![PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
            waits.extend(self.daemon.iter().map(|daemon| PollFd::new(daemon.as_fd(), PollFlags::POLLIN)));
            // EINTR is a reason to look as well.
            let _ = poll(&mut waits, left);
            let has = |at: usize| waits.get(at).and_then(PollFd::any).unwrap_or(false);
            let (asked, knocks) = (has(1), has(0));
            // First: a daemon that has just died makes room for the next one.
            if asked {
                match self.hear() {
                    After::GoOn => {}
                    After::Disconnect => self.disconnect(),
                    After::End => return,
                }
            }
            if knocks {
                self.accept(listener);
            }
        }
    }

    fn disconnect(&mut self) {
        self.daemon = None;
        self.next.clear();
        self.until = Instant::now() + if self.held.is_empty() { UNUSED } else { self.lease };
    }

    /// Greets a daemon. Another user's process is closed without a word.
    fn accept(&mut self, listener: &Socket) {
        let Ok((daemon, _)) = listener.accept() else { return };
        let user = getsockopt(&daemon, PeerCredentials).map(|peer| peer.uid());
        if user != Ok(Uid::effective().as_raw()) || daemon.set_nonblocking(true).is_err() {
            return;
        }
        if self.daemon.is_some() {
            let _ = protocol::send(&daemon, &[BUSY], &[]);
        } else if protocol::send(&daemon, &[SERVED, VERSION], &[]).is_ok() {
            self.daemon = Some(daemon);
        }
    }

    fn hear(&mut self) -> After {
        let Some(daemon) = &self.daemon else { return After::GoOn };
        match protocol::receive(daemon) {
            Ok(Some(packet)) => self.carry_out(packet),
            Err(error) if error.kind() == ErrorKind::WouldBlock => After::GoOn,
            Ok(None) | Err(_) => After::Disconnect,
        }
    }

    fn carry_out(&mut self, packet: Packet) -> After {
        let kind = packet.bytes().get(1).copied().and_then(Kind::of);
        match (packet.bytes()[0], kind) {
            (KEEP, Some(kind)) if self.next.len() + packet.fds.len() <= MOST => {
                self.next.extend(packet.fds.into_iter().map(|fd| (kind, fd)));
                After::GoOn
            }
            (COMMIT, _) => {
                let Some(lease) = packet.bytes().get(1..9).and_then(|bytes| bytes.try_into().ok()) else {
                    return After::Disconnect;
                };
                self.lease = Duration::from_millis(u64::from_be_bytes(lease));
                // What both sets have is not closed in between.
                self.held = std::mem::take(&mut self.next);
                self.answer(DONE)
            }
            (TAKE, _) => self.hand_out(),
            (RELEASE, _) => {
                self.held.clear();
                let _ = self.answer(DONE);
                After::End
            }
            _ => After::Disconnect,
        }
    }

    fn hand_out(&self) -> After {
        let Some(daemon) = &self.daemon else { return After::GoOn };
        let wanted = self.held.iter().filter(|(kind, _)| *kind != Kind::Membership);
        for (kind, fd) in wanted {
            if protocol::send(daemon, &[DESCRIPTOR, kind.byte()], &[fd.as_fd()]).is_err() {
                return After::Disconnect;
            }
        }
        self.answer(DONE)
    }

    /// A daemon that does not read its answers is not served.
    fn answer(&self, byte: u8) -> After {
        let sent = self.daemon.as_ref().map(|daemon| protocol::send(daemon, &[byte], &[]));
        if matches!(sent, Some(Err(_))) { After::Disconnect } else { After::GoOn }
    }
}
