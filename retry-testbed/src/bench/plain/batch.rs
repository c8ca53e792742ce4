//! Many datagrams in one system call, in and out.

use std::{io, mem::zeroed, os::fd::RawFd};

/// Datagrams in one call.
pub(super) const BATCH: usize = 64;

const ADDRESS: libc::socklen_t = {
    let length = size_of::<libc::sockaddr_in6>();
    assert!(length < 128);
    #[expect(clippy::cast_possible_truncation, reason = "28")]
    let length = length as libc::socklen_t;
    length
};

/// Buffers of one `recvmmsg`, used again by the next.
pub(super) struct Inbox {
    buffer_len: usize,
    buffers: Vec<u8>,
    sources: Vec<libc::sockaddr_in6>,
    vectors: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

impl Inbox {
    pub(super) fn new(buffer_len: usize) -> Self {
        // SAFETY: integers only, for which zero is a value.
        let source: libc::sockaddr_in6 = unsafe { zeroed() };
        // SAFETY: integers and raw pointers only, for which zero is a value.
        let header: libc::mmsghdr = unsafe { zeroed() };
        let mut inbox = Self {
            buffer_len,
            buffers: vec![0; BATCH * buffer_len],
            sources: vec![source; BATCH],
            vectors: Vec::with_capacity(BATCH),
            headers: vec![header; BATCH],
        };
        for buffer in inbox.buffers.chunks_exact_mut(buffer_len) {
            inbox.vectors.push(libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer_len });
        }
        for ((header, vector), source) in inbox.headers.iter_mut().zip(&mut inbox.vectors).zip(&mut inbox.sources) {
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = std::ptr::from_mut(source).cast();
        }
        inbox
    }

    /// Waits for a first datagram and takes what is queued with it; 0 after the socket's receive timeout.
    pub(super) fn receive(&mut self, socket: RawFd) -> io::Result<usize> {
        for header in &mut self.headers {
            header.msg_hdr.msg_namelen = ADDRESS;
        }
        let count = libc::c_uint::try_from(BATCH).unwrap_or(0);
        // SAFETY: the headers point at buffers of this value, with their lengths; they outlive the call.
        let received = unsafe {
            libc::recvmmsg(socket, self.headers.as_mut_ptr(), count, libc::MSG_WAITFORONE, std::ptr::null_mut())
        };
        match usize::try_from(received) {
            Ok(received) => Ok(received),
            Err(_) => match io::Error::last_os_error() {
                error if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
                error => Err(error),
            },
        }
    }

    /// One of the datagrams of the last call.
    pub(super) fn datagram(&self, at: usize) -> (&[u8], &libc::sockaddr_in6) {
        let length = usize::try_from(self.headers[at].msg_len).unwrap_or(0).min(self.buffer_len);
        let start = at * self.buffer_len;
        (&self.buffers[start..start + length], &self.sources[at])
    }
}

/// Datagrams that leave in one `sendmmsg`; their bytes stay where they are until then.
pub(super) struct Outbox {
    targets: Vec<libc::sockaddr_in6>,
    vectors: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

impl Outbox {
    pub(super) fn new() -> Self {
        Self {
            targets: Vec::with_capacity(3 * BATCH),
            vectors: Vec::with_capacity(3 * BATCH),
            headers: Vec::with_capacity(3 * BATCH),
        }
    }

    /// Adds one.
    ///
    /// # Safety
    /// The bytes stay where they are and as they are until [`Outbox::send`] or [`Outbox::clear`].
    pub(super) unsafe fn push(&mut self, bytes: &[u8], target: libc::sockaddr_in6) {
        self.targets.push(target);
        self.vectors.push(libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() });
    }

    /// Sends all. What the kernel has no room for is lost, as a datagram is.
    pub(super) fn send(&mut self, socket: RawFd) {
        self.headers.clear();
        for (vector, target) in self.vectors.iter_mut().zip(&mut self.targets) {
            // SAFETY: integers and raw pointers only, for which zero is a value.
            let mut header: libc::mmsghdr = unsafe { zeroed() };
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = std::ptr::from_mut(target).cast();
            header.msg_hdr.msg_namelen = ADDRESS;
            self.headers.push(header);
        }
        let mut done = 0;
        while done < self.headers.len() {
            let rest = &mut self.headers[done..];
            let count = libc::c_uint::try_from(rest.len()).unwrap_or(0);
            // SAFETY: headers, vectors and targets are this value's; the bytes stand by the promise of `push`.
            let sent = unsafe { libc::sendmmsg(socket, rest.as_mut_ptr(), count, 0) };
            // One that cannot be sent is left out, and the rest goes on.
            done += usize::try_from(sent).unwrap_or(1).max(1);
        }
        self.clear();
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.targets.clear();
        self.vectors.clear();
    }
}
