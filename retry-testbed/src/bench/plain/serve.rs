//! NACKs in, answers out.

use std::{
    net::{SocketAddrV6, UdpSocket},
    os::fd::AsRawFd as _,
};

use anyhow::Result;
use nix::time::{ClockId, clock_gettime};
use retry_common::{
    key::FrameKey,
    wire::{
        answer::{AckFlags, Answer},
        nack::Nack,
    },
};
use retry_testbed::net::fabric::{DATA_PORT, group};
use socket2::{Domain, SockRef, Socket, Type};

use super::{
    Shared,
    batch::{BATCH, Inbox, Outbox},
    limits::Limits,
    log::Log,
    prepare,
};
use crate::bench::rig::{FLOW, frame};

/// As the daemon's.
const RECEIVE_BUFFER: i32 = 4 << 20;

/// What a hit is answered with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answering {
    /// An ACK, first.
    pub(crate) ack: bool,
    /// The frame to who asked.
    pub(crate) unicast: bool,
    /// The frame to its group.
    pub(crate) multicast: bool,
}

pub(super) fn run(
    shared: &Shared,
    to: SocketAddrV6,
    interface: u32,
    frames: u64,
    length: usize,
    answering: Answering,
) -> Result<()> {
    let mut log = Log::new(usize::try_from(frames)?, length);
    for seq_num in 1..=frames {
        log.put(FrameKey::new(FLOW, seq_num), &frame(seq_num, length, 1));
    }
    let socket: UdpSocket = Socket::new(Domain::IPV6, Type::DGRAM, None)?.into();
    SockRef::from(&socket).set_multicast_if_v6(interface)?;
    SockRef::from(&socket).set_multicast_hops_v6(1)?;
    SockRef::from(&socket).set_multicast_loop_v6(false)?;
    SockRef::from(&socket).set_send_buffer_size(4 << 20)?;
    prepare(&socket, RECEIVE_BUFFER)?;
    SockRef::from(&socket).bind(&to.into())?;
    shared.ready();

    let descriptor = socket.as_raw_fd();
    let (mut inbox, mut outbox) = (Inbox::new(128), Outbox::new());
    let mut limits = Limits::out_of_reach();
    let window = limits.window();
    let mut answers = [[0u8; 16]; BATCH];
    let to_group = raw(SocketAddrV6::new(group(0), DATA_PORT, 0, interface));
    let flags = match (answering.multicast, answering.unicast) {
        (true, true) => AckFlags::from_bits(AckFlags::MULTICAST.bits() | AckFlags::UNICAST.bits()),
        (true, false) => AckFlags::MULTICAST,
        _ => AckFlags::UNICAST,
    };
    while !shared.stopped() {
        let received = inbox.receive(descriptor)?;
        let now = now_ns()?;
        for (at, answer) in answers.iter_mut().enumerate().take(received) {
            let (bytes, source) = inbox.datagram(at);
            let Ok(nack) = Nack::parse(bytes) else {
                continue;
            };
            if !limits.admit(source.sin6_addr.s6_addr, now) {
                continue;
            }
            let Some((bytes, state)) = log.get(nack.key) else {
                *answer = Answer::Miss.to_bytes();
                // SAFETY: `answers` is not touched again before `send`, below: one answer for one place of the batch.
                unsafe { outbox.push(answer, *source) };
                continue;
            };
            let Some(charged) = window.take(*state, now) else {
                continue;
            };
            *state = charged;
            if answering.ack {
                *answer = Answer::Ack { flags, seq_num: nack.key.seq_num() }.to_bytes();
                // SAFETY: as above.
                unsafe { outbox.push(answer, *source) };
            }
            if answering.unicast {
                // SAFETY: the log is not written to before `send`, below.
                unsafe { outbox.push(bytes, *source) };
            }
            if answering.multicast {
                // SAFETY: as above.
                unsafe { outbox.push(bytes, to_group) };
            }
        }
        outbox.send(descriptor);
    }
    Ok(())
}

fn now_ns() -> Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(u64::try_from(time.tv_sec())? * 1_000_000_000 + u64::try_from(time.tv_nsec())?)
}

fn raw(address: SocketAddrV6) -> libc::sockaddr_in6 {
    libc::sockaddr_in6 {
        sin6_family: libc::sa_family_t::try_from(libc::AF_INET6).unwrap_or(0),
        sin6_port: address.port().to_be(),
        sin6_flowinfo: 0,
        sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
        sin6_scope_id: address.scope_id(),
    }
}
