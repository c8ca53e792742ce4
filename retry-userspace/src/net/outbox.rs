//! Sends many unicast datagrams a system call.

use std::io;
use std::mem::zeroed;
use std::net::SocketAddrV6;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use super::message;

/// The kernel takes at most this many messages a call (UIO_MAXIOV).
const MOST: usize = 1024;

/// Datagrams to send, with their bytes in one arena that is used again.
///
/// They leave in the order of their [`Outbox::push`]. Each has an outcome of its own, because an ACK may be sent only for a frame that
/// left: put frames into one outbox, look at their outcomes, then put the ACKs into the next.
#[derive(Default)]
pub struct Outbox {
    arena: Vec<u8>,
    entries: Vec<Entry>,
    waiting: Vec<usize>,
    destinations: Vec<libc::sockaddr_in6>,
    vectors: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

// SAFETY: the raw pointers in `vectors` and `headers` point into this value's own heap buffers and are written anew before each call.
unsafe impl Send for Outbox {}

struct Entry {
    to: SocketAddrV6,
    bytes: Range<usize>,
    outcome: Outcome,
}

#[derive(Clone, Copy)]
enum Outcome {
    Waiting,
    Sent,
    Refused(Errno),
}

impl Outbox {
    /// An empty outbox.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a datagram and returns its place. The bytes are copied.
    pub fn push(&mut self, to: SocketAddrV6, bytes: &[u8]) -> usize {
        let start = self.arena.len();
        self.arena.extend_from_slice(bytes);
        self.entries.push(Entry { to, bytes: start..self.arena.len(), outcome: Outcome::Waiting });
        self.entries.len() - 1
    }

    /// Forgets all datagrams and their outcomes, keeping the memory.
    pub fn clear(&mut self) {
        self.arena.clear();
        self.entries.clear();
    }

    /// Datagrams in the outbox, sent or not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// There are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The kernel accepted the datagram at this place for transmission.
    #[must_use]
    pub fn sent(&self, place: usize) -> bool {
        matches!(self.entries.get(place), Some(Entry { outcome: Outcome::Sent, .. }))
    }

    /// Why the datagram at this place was refused; none when it was sent, or not tried yet.
    #[must_use]
    pub fn error(&self, place: usize) -> Option<io::Error> {
        match self.entries.get(place)?.outcome {
            Outcome::Refused(errno) => Some(errno.into()),
            Outcome::Waiting | Outcome::Sent => None,
        }
    }

    /// Tries each waiting datagram once and returns how many left. A refused one does not stop those behind it.
    pub(super) fn send(&mut self, socket: BorrowedFd<'_>) -> usize {
        self.prepare();
        self.send_prepared(socket)
    }

    fn send_prepared(&mut self, socket: BorrowedFd<'_>) -> usize {
        let (mut next, mut left) = (0, 0);
        while next < self.headers.len() {
            let chunk = &mut self.headers[next..];
            let count = libc::c_uint::try_from(chunk.len().min(MOST)).unwrap_or(0);
            // SAFETY: `prepare` has pointed each header at an address and bytes of this value; they outlive the call and only the
            // headers are written.
            let result =
                unsafe { libc::sendmmsg(socket.as_raw_fd(), chunk.as_mut_ptr(), count, libc::MSG_DONTWAIT as _) };
            // The kernel stops at the first refused datagram and tells its error when it stands first.
            let (tried, outcome) = match (usize::try_from(result), Errno::last()) {
                (Ok(sent), _) if sent > 0 => (sent, Outcome::Sent),
                (_, Errno::EINTR) => continue,
                // The send buffer is full: it has no room for the others either.
                (_, Errno::EAGAIN) => (chunk.len(), Outcome::Refused(Errno::EAGAIN)),
                (_, errno) => (1, Outcome::Refused(errno)),
            };
            for &place in &self.waiting[next..next + tried] {
                self.entries[place].outcome = outcome;
            }
            if matches!(outcome, Outcome::Sent) {
                left += tried;
            }
            next += tried;
        }
        left
    }

    fn prepare(&mut self) {
        self.waiting.clear();
        let places = self.entries.iter().enumerate();
        self.waiting.extend(places.filter(|(_, one)| matches!(one.outcome, Outcome::Waiting)).map(|(place, _)| place));
        let waiting = || self.waiting.iter().map(|&place| &self.entries[place]);
        self.destinations.clear();
        self.destinations.extend(waiting().map(|one| message::to_raw(one.to)));
        self.vectors.clear();
        self.vectors.extend(waiting().map(|one| {
            let bytes = &self.arena[one.bytes.clone()];
            libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
        }));
        self.headers.clear();
        for (to, vector) in self.destinations.iter_mut().zip(&mut self.vectors) {
            // SAFETY: mmsghdr is integers and raw pointers only, for which zero is a value.
            let mut header: libc::mmsghdr = unsafe { zeroed() };
            header.msg_hdr.msg_name = std::ptr::from_mut(to).cast();
            header.msg_hdr.msg_namelen = message::ADDRESS;
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            self.headers.push(header);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::*;
    use crate::net::batch::Batch;
    use crate::net::options;
    use crate::net::testing::QUIET;

    fn bound() -> (UdpSocket, SocketAddrV6) {
        let socket = UdpSocket::bind("[::1]:0").expect("loopback");
        options::set_receive_buffer(&socket, 4 << 20).expect("an option");
        match socket.local_addr().expect("bound") {
            std::net::SocketAddr::V6(address) => (socket, address),
            std::net::SocketAddr::V4(_) => unreachable!("bound to ::1"),
        }
    }

    fn drain(socket: &UdpSocket) -> Vec<Vec<u8>> {
        let mut batch = Batch::new(64, 2048);
        let mut all = Vec::new();
        while batch.recv(socket, QUIET).expect("received") > 0 {
            all.extend(batch.datagrams().map(|one| one.bytes.to_vec()));
        }
        all
    }

    #[test]
    fn more_than_one_call_takes_arrive_in_order() {
        let (sender, _) = bound();
        let (first, to_first) = bound();
        let (second, to_second) = bound();
        let mut outbox = Outbox::new();
        assert!(outbox.is_empty());
        // Above the 1024 messages of one system call.
        let numbers: Vec<u32> = (0..1_500).collect();
        for number in &numbers {
            let to = if number % 3 == 0 { to_first } else { to_second };
            outbox.push(to, &number.to_be_bytes());
        }
        assert!(!outbox.sent(0));
        assert_eq!(outbox.send(sender.as_fd()), 1_500);
        assert_eq!(outbox.len(), 1_500);
        assert!((0..1_500).all(|place| outbox.sent(place) && outbox.error(place).is_none()));
        let expected = |keep: fn(u32) -> bool| -> Vec<Vec<u8>> {
            numbers.iter().filter(|number| keep(**number)).map(|number| number.to_be_bytes().to_vec()).collect()
        };
        assert_eq!(drain(&first), expected(|number| number % 3 == 0));
        assert_eq!(drain(&second), expected(|number| number % 3 != 0));
    }

    #[test]
    fn a_refused_datagram_does_not_stop_the_others() {
        let (sender, _) = bound();
        let (receiver, to) = bound();
        let nobody: SocketAddrV6 = "[::1]:0".parse().expect("an address");
        let mut outbox = Outbox::new();
        outbox.push(nobody, b"port 0");
        outbox.push(to, b"one");
        outbox.push(to, &[0; 65_528]);
        outbox.push(to, b"two");
        outbox.push(nobody, b"port 0");
        assert_eq!(outbox.send(sender.as_fd()), 2);
        let errors: Vec<_> = (0..5).map(|place| outbox.error(place).and_then(|error| error.raw_os_error())).collect();
        assert_eq!(errors, [Some(libc::EINVAL), None, Some(libc::EMSGSIZE), None, Some(libc::EINVAL)]);
        assert_eq!(
            (0..6).map(|place| outbox.sent(place)).collect::<Vec<_>>(),
            [false, true, false, true, false, false]
        );
        assert_eq!(drain(&receiver), [b"one", b"two"]);
    }

    #[test]
    fn a_cleared_outbox_sends_only_what_is_new() {
        let (sender, _) = bound();
        let (receiver, to) = bound();
        let mut outbox = Outbox::new();
        outbox.push(to, b"old");
        assert_eq!(outbox.send(sender.as_fd()), 1);
        // What left once stays sent and does not leave again.
        outbox.push(to, b"more");
        assert_eq!(outbox.send(sender.as_fd()), 1);
        outbox.clear();
        assert_eq!(outbox.push(to, b"new"), 0);
        assert!(!outbox.sent(0));
        assert_eq!(outbox.send(sender.as_fd()), 1);
        assert_eq!(drain(&receiver), [&b"old"[..], b"more", b"new"]);
    }

    #[test]
    fn a_full_send_buffer_refuses_the_rest_at_once() {
        // A unix socket of nobody's reading stands for a stalled interface: UDP on loopback never fills its send buffer.
        let (sender, _kept) = std::os::unix::net::UnixDatagram::pair().expect("a pair");
        sender.set_write_timeout(Some(Duration::from_millis(50))).expect("an option");
        while sender.send(&[0; 1024]).is_ok() {}
        let (_, to) = bound();
        let mut outbox = Outbox::new();
        let places: Vec<_> = (0..40).map(|_| outbox.push(to, b"x")).collect();
        outbox.prepare();
        for header in &mut outbox.headers {
            header.msg_hdr.msg_name = std::ptr::null_mut();
            header.msg_hdr.msg_namelen = 0;
        }
        let start = std::time::Instant::now();
        assert_eq!(outbox.send_prepared(sender.as_fd()), 0);
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        let full = |place: &usize| outbox.error(*place).and_then(|error| error.raw_os_error()) == Some(libc::EAGAIN);
        assert!(places.iter().all(full));
    }
}
