//! Raw packets at full speed: many in one system call.

use std::{
    mem,
    os::fd::{AsRawFd as _, OwnedFd},
};

use anyhow::Result;
use nix::errno::Errno;

use crate::net::{capture, netns::Netns};

/// Packets of one system call.
pub const BATCH: usize = 64;

/// Sends batches of Ethernet frames.
#[derive(Debug)]
pub struct BatchSender {
    socket: OwnedFd,
}

impl BatchSender {
    /// A sender on an interface of a namespace.
    ///
    /// # Errors
    /// No such interface, or not root.
    pub fn open(ns: &Netns, interface: &str) -> Result<Self> {
        Ok(Self { socket: capture::open(ns, interface, 0)? })
    }

    /// Sends packets, at most [`BATCH`] of them, and returns how many left. A full queue ends it early.
    ///
    /// # Errors
    /// The interface refuses them: too long, or it is down.
    pub fn send(&self, packets: &[Vec<u8>]) -> Result<usize> {
        // SAFETY: all-zero bytes are valid message headers and slices.
        let mut messages: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
        // SAFETY: as above.
        let mut slices: [libc::iovec; BATCH] = unsafe { mem::zeroed() };
        for ((message, slice), packet) in messages.iter_mut().zip(&mut slices).zip(packets) {
            slice.iov_base = packet.as_ptr().cast_mut().cast();
            slice.iov_len = packet.len();
            message.msg_hdr.msg_iov = slice;
            message.msg_hdr.msg_iovlen = 1;
        }
        let count = libc::c_uint::try_from(packets.len().min(BATCH))?;
        // SAFETY: the first `count` headers point at slices of packets, which all outlive the call; sending reads them only.
        let sent = unsafe { libc::sendmmsg(self.socket.as_raw_fd(), messages.as_mut_ptr(), count, 0) };
        match Errno::result(sent) {
            Ok(sent) => Ok(usize::try_from(sent)?),
            Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::EINTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }
}
