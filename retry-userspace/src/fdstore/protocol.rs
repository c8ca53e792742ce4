//! What the daemon and the holder say to each other: packets of a Unix socket (`SOCK_SEQPACKET`), with descriptors.
//!
//! The holder may be of another build than the daemon. The greeting says its version; [`RELEASE`] means the same in all of
//! them.
//!
//! | from | packet | descriptors | meaning |
//! | --- | --- | --- | --- |
//! | holder | `H`, version | | greeting: this daemon is served |
//! | holder | `B` | | greeting: another daemon is connected; the holder closes |
//! | daemon | `T` | | asks for what is held besides memberships |
//! | holder | `D`, kind | one | one of them |
//! | daemon | `K`, kind | 1 to 64 | of the next set |
//! | daemon | `C`, lease in ms (8 bytes, big endian) | | the next set is complete: it replaces the present one |
//! | daemon | `R` | | the holder closes everything and ends |
//! | holder | `.` | | `T`, `C` or `R` is done |

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use socket2::{SockAddr, Socket};

/// Version of everything but [`RELEASE`] and the greeting itself.
pub(super) const VERSION: u8 = 1;
/// Greeting: served.
pub(super) const SERVED: u8 = b'H';
/// Greeting: another daemon is connected.
pub(super) const BUSY: u8 = b'B';
/// Asks for what is held besides memberships.
pub(super) const TAKE: u8 = b'T';
/// One descriptor that was asked for.
pub(super) const DESCRIPTOR: u8 = b'D';
/// Descriptors of the next set.
pub(super) const KEEP: u8 = b'K';
/// The next set replaces the present one.
pub(super) const COMMIT: u8 = b'C';
/// The holder ends.
pub(super) const RELEASE: u8 = b'R';
/// Done.
pub(super) const DONE: u8 = b'.';

/// Descriptors in one packet; the kernel takes 253.
pub(super) const MOST_AT_ONCE: usize = 64;
/// Bytes of the longest packet.
const LONGEST: usize = 9;

/// What the names of all holders begin with.
const NAMES: &str = "retry-endpoint/hold/";

/// What a descriptor is kept for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// A membership socket.
    Membership,
    /// The NACK socket.
    Nack,
    /// The file that says when the daemon last ran.
    LastRun,
}

impl Kind {
    /// All of them.
    pub(super) const ALL: [Self; 3] = [Self::Membership, Self::Nack, Self::LastRun];

    /// Its byte in packets.
    pub(super) const fn byte(self) -> u8 {
        match self {
            Self::Membership => b'm',
            Self::Nack => b'n',
            Self::LastRun => b't',
        }
    }

    /// The one of this byte.
    pub(super) fn of(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.byte() == byte)
    }
}

/// The address of the holder of an interface: an abstract name, of the calling thread's network namespace.
///
/// # Errors
/// None for names that the kernel gives interfaces (15 bytes at most).
pub(super) fn address(interface: &str) -> io::Result<SockAddr> {
    SockAddr::unix(format!("\0{NAMES}{interface}"))
}

/// The interfaces whose holders run in the calling thread's network namespace; also names that another user squats.
///
/// # Errors
/// `/proc` cannot be read.
pub(crate) fn interfaces() -> io::Result<Vec<String>> {
    let table = std::fs::read_to_string("/proc/thread-self/net/unix")?;
    let mut found: Vec<String> = table
        .lines()
        .filter_map(|line| line.split_whitespace().nth(7)?.strip_prefix('@')?.strip_prefix(NAMES))
        .map(str::to_owned)
        .collect();
    // Connections have the name of their listener.
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// One packet.
#[derive(Debug)]
pub(super) struct Packet {
    bytes: [u8; LONGEST],
    length: usize,
    /// The descriptors that came with it.
    pub(super) fds: Vec<OwnedFd>,
}

impl Packet {
    /// Its bytes, at least one.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// Sends one packet.
///
/// # Errors
/// What `sendmsg` returns: EAGAIN when the socket does not wait, or has waited for as long as it may; EPIPE when the peer is
/// gone.
pub(super) fn send(socket: &Socket, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let controls = if raw.is_empty() { &[][..] } else { &rights[..] };
    loop {
        let sent = sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], controls, MsgFlags::MSG_NOSIGNAL, None);
        match sent {
            Err(Errno::EINTR) => {}
            other => return Ok(other.map(drop)?),
        }
    }
}

/// Receives one packet; `None` when the peer has closed.
///
/// # Errors
/// What `recvmsg` returns: EAGAIN as for [`send`]; ENOBUFS when more descriptors came than one packet may have, or than this
/// process may open.
pub(super) fn receive(socket: &Socket) -> io::Result<Option<Packet>> {
    let mut packet = Packet { bytes: [0; LONGEST], length: 0, fds: Vec::new() };
    let mut space = cmsg_space!([RawFd; MOST_AT_ONCE]);
    loop {
        let mut vectors = [IoSliceMut::new(&mut packet.bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let received = match recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut vectors, Some(&mut space), flags) {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        let length = received.bytes;
        for control in received.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                for fd in raw {
                    // SAFETY: the kernel has just opened this descriptor for this process, and nothing else owns it.
                    packet.fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
                }
            }
        }
        packet.length = length;
        return Ok((length > 0).then_some(packet));
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Seek as _, Write as _};

    use socket2::{Domain, Type};

    use super::*;

    #[test]
    fn descriptors_arrive_as_they_are() {
        let (near, far) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None).expect("a pair");
        let mut file: File = tempfile::tempfile().expect("a file");
        file.write_all(b"bytes").expect("written");
        let fds = vec![file.as_fd(); MOST_AT_ONCE];
        send(&near, &[KEEP, Kind::Nack.byte()], &fds).expect("sent");
        send(&near, &[DONE], &[]).expect("sent");
        let packet = receive(&far).expect("received").expect("a packet");
        assert_eq!((packet.bytes(), packet.fds.len()), (&[KEEP, b'n'][..], MOST_AT_ONCE));
        let mut copy = File::from(packet.fds.into_iter().next().expect("one"));
        copy.rewind().expect("a file");
        let mut text = String::new();
        copy.read_to_string(&mut text).expect("text");
        assert_eq!(text, "bytes");
        let packet = receive(&far).expect("received").expect("a packet");
        assert_eq!((packet.bytes(), packet.fds.len()), (&[DONE][..], 0));
        drop(near);
        assert!(receive(&far).expect("the end").is_none());
    }

    #[test]
    fn kinds_have_bytes_of_their_own() {
        for kind in Kind::ALL {
            assert_eq!(Kind::of(kind.byte()), Some(kind));
        }
        assert_eq!(Kind::of(b'?'), None);
    }
}
