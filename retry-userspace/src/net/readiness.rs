//! Waits on several sockets.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Waits until one of several sockets has a datagram.
pub(crate) struct Readiness<'a> {
    sockets: Vec<PollFd<'a>>,
}

impl<'a> Readiness<'a> {
    /// Watches these sockets.
    #[must_use]
    pub(crate) fn new(sockets: impl IntoIterator<Item = BorrowedFd<'a>>) -> Self {
        Self { sockets: sockets.into_iter().map(|socket| PollFd::new(socket, PollFlags::POLLIN)).collect() }
    }

    /// Waits up to `timeout` (rounded up to milliseconds) and returns how many sockets are ready. 0 after the time, or a signal.
    ///
    /// # Errors
    /// What `poll` returns, other than the end of the time and a signal.
    pub(crate) fn wait(&mut self, timeout: Duration) -> io::Result<usize> {
        let milliseconds = timeout.as_nanos().div_ceil(1_000_000);
        let timeout = i32::try_from(milliseconds)
            .ok()
            .and_then(|value| PollTimeout::try_from(value).ok())
            .unwrap_or(PollTimeout::MAX);
        match poll(&mut self.sockets, timeout) {
            Ok(ready) => Ok(usize::try_from(ready).unwrap_or_default()),
            Err(Errno::EINTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Places, in the order given to [`Readiness::new`], of the sockets that the last wait found ready or failed: a receive tells which.
    pub(crate) fn ready(&self) -> impl Iterator<Item = usize> {
        self.sockets.iter().enumerate().filter(|(_, socket)| socket.any() == Some(true)).map(|(at, _)| at)
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn readiness_tells_which_socket_has_a_datagram() {
        let first = UdpSocket::bind("[::1]:0").expect("loopback");
        let second = UdpSocket::bind("[::1]:0").expect("loopback");
        let mut readiness = Readiness::new([first.as_fd(), second.as_fd()]);
        assert_eq!(readiness.wait(Duration::ZERO).expect("no error"), 0);
        assert_eq!(readiness.ready().count(), 0);
        first.send_to(b"x", second.local_addr().expect("bound")).expect("sent");
        assert_eq!(readiness.wait(Duration::from_secs(5)).expect("no error"), 1);
        assert_eq!(readiness.ready().collect::<Vec<_>>(), [1]);
    }
}
