//! Frames in, into the ring: the reference for fill.

use std::{
    net::{Ipv6Addr, SocketAddrV6, UdpSocket},
    os::fd::AsRawFd as _,
    sync::atomic::Ordering,
};

use anyhow::Result;
use retry_testbed::{
    net::fabric::{DATA_PORT, group},
    peers::journal::key_of,
};
use socket2::{Domain, Socket, Type};

use super::{Shared, batch::Inbox, log::Log, prepare};

/// As the daemon's.
const RECEIVE_BUFFER: i32 = 16 << 20;

pub(super) fn run(shared: &Shared, interface: u32, frames: usize, length: usize) -> Result<()> {
    let mut log = Log::new(frames, length);
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
    socket.bind(&SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, DATA_PORT, 0, 0).into())?;
    let socket: UdpSocket = socket.into();
    prepare(&socket, RECEIVE_BUFFER)?;
    socket.join_multicast_v6(&group(0), interface)?;
    shared.ready();
    let mut inbox = Inbox::new(2048);
    while !shared.stopped() {
        let received = inbox.receive(socket.as_raw_fd())?;
        for at in 0..received {
            let (bytes, _) = inbox.datagram(at);
            if let Some(key) = key_of(bytes) {
                log.put(key, bytes);
            }
        }
        shared.stored.store(log.stored(), Ordering::Release);
    }
    Ok(())
}
