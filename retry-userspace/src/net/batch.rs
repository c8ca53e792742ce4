//! Receives many datagrams a system call.

use std::io;
use std::mem::zeroed;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::errno::Errno;

use super::message::{self, PKTINFO, controls, pktinfo, space};
pub(crate) use super::readiness::Readiness;

/// Longest wait for a datagram by a thread that also has to see a shutdown flag.
pub(crate) const SHUTDOWN_POLL: Duration = Duration::from_millis(100);

/// Longest UDP datagram: a buffer of this length never truncates.
pub(crate) const LONGEST_DATAGRAM: usize = 1 << 16;

/// Room for `IPV6_PKTINFO`, `IPV6_HOPLIMIT`, `SO_RXQ_OVFL` and `UDP_GRO`.
const CONTROL: usize = space(PKTINFO) + space(4) + space(4) + space(4);

/// The kernel takes at most this many messages a call (UIO_MAXIOV).
const MOST: usize = 1024;

/// What stands between two buffers, in bytes: an odd number of cache lines. Short datagrams in buffers 64 KiB apart would all
/// want the same few places of the cache.
const STAGGER: usize = 9 * 64;

/// Buffers for the datagrams of one system call, used again by the next.
///
/// A buffer's memory is touched when a datagram first fills it, so long buffers cost address space and not memory.
pub(crate) struct Batch {
    buffer_len: usize,
    /// From one buffer to the next.
    stride: usize,
    buffers: Vec<u8>,
    controls: Vec<[u8; CONTROL]>,
    sources: Vec<libc::sockaddr_in6>,
    vectors: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
    received: usize,
}

// SAFETY: the raw pointers in `vectors` and `headers` point into this value's own heap buffers and are written anew before each call.
unsafe impl Send for Batch {}

/// One received datagram; the bytes stay in the batch until its next receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Datagram<'a> {
    /// The UDP payload.
    pub bytes: &'a [u8],
    /// Who sent it.
    pub source: SocketAddrV6,
    /// Its destination address, when the socket asks for it (IPV6_RECVPKTINFO).
    pub destination: Option<Ipv6Addr>,
    /// Index of the interface that it came in by, when the socket asks for it (IPV6_RECVPKTINFO).
    pub interface: Option<u32>,
    /// Its hop limit on arrival, when the socket asks for it (IPV6_RECVHOPLIMIT).
    pub hop_limit: Option<u8>,
    /// It was longer than the buffer and lost its end.
    pub truncated: bool,
    /// Datagrams that the socket had dropped when this one was queued, since it was opened (SO_RXQ_OVFL); wraps at 2^32.
    pub dropped: u32,
}

impl Batch {
    /// A batch of up to `count` datagrams (1 to 1024; other values are brought into that range), `buffer_len` bytes each.
    #[must_use]
    pub(crate) fn new(count: usize, buffer_len: usize) -> Self {
        let count = count.clamp(1, MOST);
        let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        // SAFETY: sockaddr_in6 is integers only, for which zero is a value.
        let source: libc::sockaddr_in6 = unsafe { zeroed() };
        // SAFETY: mmsghdr is integers and raw pointers only, for which zero is a value.
        let header: libc::mmsghdr = unsafe { zeroed() };
        Self {
            buffer_len,
            stride: buffer_len + STAGGER,
            buffers: vec![0; count * (buffer_len + STAGGER)],
            controls: vec![[0; CONTROL]; count],
            sources: vec![source; count],
            vectors: vec![empty; count],
            headers: vec![header; count],
            received: 0,
        }
    }

    /// Receives what is queued at `socket`, waiting up to `timeout` for a first datagram. 0 means none came.
    ///
    /// # Errors
    /// What `recvmmsg` or `poll` returns; a signal or an empty queue is 0, not an error.
    #[cfg(test)]
    pub(crate) fn recv(&mut self, socket: &impl AsFd, timeout: Duration) -> io::Result<usize> {
        // Under load the queue is seldom empty: ask it first and save the poll.
        if self.recv_now(socket)? == 0 && Readiness::new([socket.as_fd()]).wait(timeout)? > 0 {
            return self.recv_now(socket);
        }
        Ok(self.received)
    }

    /// Receives what is queued at `socket`, without waiting. 0 means that nothing was.
    ///
    /// # Errors
    /// What `recvmmsg` returns; a signal or an empty queue is 0, not an error.
    pub(crate) fn recv_now(&mut self, socket: &impl AsFd) -> io::Result<usize> {
        self.receive(socket, libc::MSG_DONTWAIT)
    }

    /// Receives what is queued at `socket`, waiting for a first datagram as long as its receive timeout (SO_RCVTIMEO) allows.
    /// 0 means none came. Of several threads that wait so, one wakes for each datagram; of those in a poll, all do.
    ///
    /// # Errors
    /// As [`Batch::recv_now`].
    pub(crate) fn recv_next(&mut self, socket: &impl AsFd) -> io::Result<usize> {
        self.receive(socket, libc::MSG_WAITFORONE)
    }

    fn receive(&mut self, socket: &impl AsFd, flags: libc::c_int) -> io::Result<usize> {
        self.received = 0;
        self.prepare();
        let count = libc::c_uint::try_from(self.headers.len()).unwrap_or(0);
        let (fd, headers) = (socket.as_fd().as_raw_fd(), self.headers.as_mut_ptr());
        // The types of the C libraries' functions differ, those of the system call do not.
        // SAFETY: `prepare` has pointed each of the `count` headers at buffers of this value, with their lengths; they outlive the call.
        let result = unsafe {
            libc::syscall(libc::SYS_recvmmsg, fd, headers, count, flags, std::ptr::null_mut::<libc::timespec>())
        };
        if let Ok(received) = usize::try_from(result) {
            self.received = received;
            return Ok(received);
        }
        match Errno::last() {
            Errno::EAGAIN | Errno::EINTR => Ok(0),
            error => Err(error.into()),
        }
    }

    /// The datagrams of the last receive, in the order of their arrival. What the kernel had merged is taken apart again.
    pub(crate) fn datagrams(&self) -> impl Iterator<Item = Datagram<'_>> {
        (0..self.received).flat_map(|at| self.message(at).split())
    }

    fn prepare(&mut self) {
        for (vector, buffer) in self.vectors.iter_mut().zip(self.buffers.chunks_exact_mut(self.stride)) {
            vector.iov_base = buffer.as_mut_ptr().cast();
            vector.iov_len = self.buffer_len;
        }
        let rest = self.vectors.iter_mut().zip(&mut self.controls).zip(&mut self.sources);
        for (header, ((vector, control), source)) in self.headers.iter_mut().zip(rest) {
            header.msg_len = 0;
            header.msg_hdr.msg_name = std::ptr::from_mut(source).cast();
            header.msg_hdr.msg_namelen = message::ADDRESS;
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = control.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = message::length(CONTROL);
            header.msg_hdr.msg_flags = 0;
        }
    }

    fn message(&self, at: usize) -> Message<'_> {
        let header = &self.headers[at];
        let start = at * self.stride;
        let length = usize::try_from(header.msg_len).unwrap_or(usize::MAX).min(self.buffer_len);
        let mut each = None;
        let mut datagram = Datagram {
            bytes: &self.buffers[start..start + length],
            source: message::from_raw(&self.sources[at]),
            destination: None,
            interface: None,
            hop_limit: None,
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            dropped: 0,
        };
        let written = message::length_of(header.msg_hdr.msg_controllen).min(CONTROL);
        for control in controls(&self.controls[at][..written]) {
            match (control.level, control.kind) {
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    (datagram.destination, datagram.interface) = pktinfo(control.data).unzip();
                }
                (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                    datagram.hop_limit = number(control.data).and_then(|value| u8::try_from(value).ok());
                }
                (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => datagram.dropped = number(control.data).unwrap_or_default(),
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    each = number(control.data).and_then(|length| usize::try_from(length).ok());
                }
                _ => {}
            }
        }
        Message { whole: datagram, each: each.unwrap_or(length).max(1) }
    }
}

/// What one receive has filled a buffer with.
struct Message<'a> {
    /// With the bytes of all its datagrams.
    whole: Datagram<'a>,
    /// Bytes of each of them; the last may be shorter.
    each: usize,
}

impl<'a> Message<'a> {
    fn split(self) -> impl Iterator<Item = Datagram<'a>> {
        let Self { whole, each } = self;
        let count = whole.bytes.len().div_ceil(each).max(1);
        (0..count).map(move |at| {
            let (start, end) = (at * each, ((at + 1) * each).min(whole.bytes.len()));
            Datagram { bytes: &whole.bytes[start..end], ..whole }
        })
    }
}

fn number(data: &[u8]) -> Option<u32> {
    data.first_chunk().copied().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Instant;

    use nix::sys::resource::{UsageWho, getrusage};
    use nix::unistd::geteuid;

    use super::*;
    use crate::net::options;
    use crate::net::testing::{QUIET, SOON};

    fn receiver(receive_buffer: usize) -> (UdpSocket, options::ReceiveBuffer) {
        let socket = UdpSocket::bind("[::1]:0").expect("loopback");
        options::tell_destination(&socket).expect("an option");
        options::tell_hop_limit(&socket).expect("an option");
        options::tell_dropped(&socket).expect("an option");
        let got = options::set_receive_buffer(&socket, receive_buffer).expect("an option");
        (socket, got)
    }

    fn sender(to: &UdpSocket) -> UdpSocket {
        let socket = UdpSocket::bind("[::1]:0").expect("loopback");
        socket.connect(to.local_addr().expect("bound")).expect("loopback");
        socket
    }

    #[test]
    fn each_datagram_comes_with_what_the_kernel_knows_of_it() {
        let (receiver, _) = receiver(1 << 20);
        let sender = sender(&receiver);
        for bytes in [&b"first"[..], b"", b"third, longer"] {
            sender.send(bytes).expect("sent");
        }
        let mut batch = Batch::new(8, 2048);
        assert_eq!(batch.recv(&receiver, SOON).expect("received"), 3);
        let got: Vec<_> = batch.datagrams().collect();
        assert_eq!(got.iter().map(|one| one.bytes).collect::<Vec<_>>(), [&b"first"[..], b"", b"third, longer"]);
        for one in got {
            assert_eq!(std::net::SocketAddr::from(one.source), sender.local_addr().expect("bound"));
            assert_eq!(one.destination, Some(Ipv6Addr::LOCALHOST));
            let lo = crate::net::interface::Interface::by_name("lo").expect("lo");
            assert_eq!(one.interface, Some(lo.index));
            assert_eq!(one.hop_limit, Some(lo.unicast_hop_limit().expect("a sysctl")));
            assert!(!one.truncated && one.dropped == 0);
        }
    }

    #[test]
    fn what_the_kernel_merged_is_taken_apart() {
        let (receiver, _) = receiver(1 << 20);
        options::take_merged(&receiver).expect("an option");
        let sender = sender(&receiver);
        sender.send(b"before").expect("sent");
        // Loopback carries what is to be segmented as it is, like a receiver that merges.
        options::send_segments(&sender, 100).expect("an option");
        let bytes: Vec<u8> = (0..950).map(|at| u8::try_from(at % 251).expect("small")).collect();
        sender.send(&bytes).expect("sent");
        options::send_segments(&sender, 0).expect("an option");
        sender.send(b"").expect("sent");
        let mut batch = Batch::new(8, 2048);
        assert_eq!(batch.recv(&receiver, SOON).expect("received"), 3, "messages");
        let got: Vec<_> = batch.datagrams().map(|one| one.bytes).collect();
        let mut wanted: Vec<&[u8]> = vec![b"before"];
        wanted.extend(bytes.chunks(100));
        wanted.push(b"");
        assert_eq!(got, wanted);
        let from = sender.local_addr().expect("bound");
        assert!(batch.datagrams().all(|one| std::net::SocketAddr::from(one.source) == from));
    }

    #[test]
    fn a_datagram_longer_than_the_buffer_says_so() {
        let (receiver, _) = receiver(1 << 20);
        let sender = sender(&receiver);
        sender.send(&[7; 100]).expect("sent");
        sender.send(&[8; 64]).expect("sent");
        let mut batch = Batch::new(2, 64);
        assert_eq!(batch.recv(&receiver, SOON).expect("received"), 2);
        let got: Vec<_> = batch.datagrams().map(|one| (one.bytes.to_vec(), one.truncated)).collect();
        assert_eq!(got, [(vec![7; 64], true), (vec![8; 64], false)]);
        // Longest datagram of IPv6 UDP, in the longest buffer.
        sender.send(&[9; 65_527]).expect("sent");
        let mut batch = Batch::new(2, LONGEST_DATAGRAM);
        assert_eq!(batch.recv(&receiver, SOON).expect("received"), 1);
        let one = batch.datagrams().next().expect("one");
        assert_eq!((one.bytes, one.truncated), (&[9; 65_527][..], false));
    }

    #[test]
    fn an_empty_socket_ends_the_wait_in_time() {
        let (receiver, _) = receiver(1 << 16);
        let mut batch = Batch::new(4, 64);
        let start = Instant::now();
        assert_eq!(batch.recv(&receiver, Duration::from_millis(30)).expect("no error"), 0);
        let waited = start.elapsed();
        assert!(waited >= Duration::from_millis(30) && waited < Duration::from_secs(2), "{waited:?}");
        assert_eq!(batch.datagrams().count(), 0);
        assert_eq!(batch.recv_now(&receiver).expect("no error"), 0);
    }

    #[test]
    fn each_datagram_wakes_one_of_those_who_wait() {
        const DATAGRAMS: usize = 40;
        let (receiver, _) = receiver(1 << 20);
        receiver.set_read_timeout(Some(Duration::from_millis(300))).expect("an option");
        let sender = sender(&receiver);
        let (received, start) = (AtomicUsize::new(0), Instant::now());
        // How often a thread went to sleep.
        let work = || {
            let mut batch = Batch::new(4, 64);
            while received.load(Ordering::Relaxed) < DATAGRAMS && start.elapsed() < SOON {
                received.fetch_add(batch.recv_next(&receiver).expect("received"), Ordering::Relaxed);
            }
            getrusage(UsageWho::RUSAGE_THREAD).expect("ours").voluntary_context_switches()
        };
        let sleeps: i64 = std::thread::scope(|scope| {
            let threads = [work; 5].map(|work| scope.spawn(work));
            for _ in 0..DATAGRAMS {
                std::thread::sleep(Duration::from_millis(5));
                sender.send(b"one").expect("sent");
            }
            threads.map(|thread| thread.join().expect("no panic")).iter().sum()
        });
        assert_eq!(received.into_inner(), DATAGRAMS);
        // Five would have gone to sleep again after each.
        assert!(sleeps < 2 * i64::try_from(DATAGRAMS).expect("small"), "{sleeps}");
    }

    #[test]
    fn a_datagram_ends_the_wait() {
        let (receiver, _) = receiver(1 << 16);
        let sender = sender(&receiver);
        let late = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            sender.send(b"late").expect("sent");
        });
        let mut batch = Batch::new(4, 64);
        let start = Instant::now();
        assert_eq!(batch.recv(&receiver, Duration::from_secs(20)).expect("received"), 1);
        assert!(start.elapsed() < Duration::from_secs(10));
        late.join().expect("sent");
    }

    #[test]
    fn ten_thousand_datagrams_wait_in_a_large_buffer() {
        const NAME: &str = "ten_thousand_datagrams_wait_in_a_large_buffer";
        const COUNT: usize = 10_000;
        let (receiver, room) = receiver(64 << 20);
        if !geteuid().is_root() {
            println!("SKIP {NAME}: needs root");
            return;
        }
        // Beyond net.core.rmem_max, as only CAP_NET_ADMIN may.
        assert_eq!(room.got, room.asked);
        let sender = sender(&receiver);
        for number in 0..COUNT {
            sender.send(&number.to_be_bytes()).expect("sent");
        }
        let mut batch = Batch::new(256, 2048);
        let mut next: usize = 0;
        while batch.recv(&receiver, QUIET).expect("received") > 0 {
            for one in batch.datagrams() {
                assert_eq!(one.bytes, next.to_be_bytes());
                assert_eq!(one.dropped, 0);
                next += 1;
            }
        }
        assert_eq!(next, COUNT);
        assert_eq!(options::dropped(&receiver).expect("a count"), 0);
    }

    #[test]
    fn what_a_small_buffer_loses_is_counted() {
        const COUNT: u32 = 2_000;
        let (receiver, room) = receiver(8 << 10);
        assert_eq!((room.asked, room.got), (8 << 10, 8 << 10));
        let sender = sender(&receiver);
        for _ in 0..COUNT {
            sender.send(&[0; 64]).expect("sent");
        }
        let mut batch = Batch::new(64, 2048);
        let mut received = 0;
        while batch.recv(&receiver, QUIET).expect("received") > 0 {
            received += u32::try_from(batch.datagrams().count()).expect("few");
        }
        assert!(received > 0 && received < COUNT, "{received}");
        assert_eq!(options::dropped(&receiver).expect("a count"), COUNT - received);
        sender.send(b"tells").expect("sent");
        assert_eq!(batch.recv(&receiver, SOON).expect("received"), 1);
        assert_eq!(batch.datagrams().next().map(|one| one.dropped), Some(COUNT - received));
    }
}
