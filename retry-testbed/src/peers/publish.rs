//! The publisher: frames by multicast from a namespace, at a rate, each noted in the journal before it leaves.

use std::{
    net::{Ipv6Addr, SocketAddrV6, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use retry_common::key::FrameKey;
use socket2::{Domain, Socket, Type};

use crate::{
    net::{
        fabric::{DATA_PORT, INTERFACE, group},
        netns::Netns,
    },
    peers::{frames::Flow, journal::Journal},
};

/// Sends frames to groups. Datagrams above the MTU leave as IPv6 fragments.
#[derive(Debug)]
pub struct Publisher {
    socket: UdpSocket,
    journal: Arc<Journal>,
    sent: AtomicU64,
}

impl Publisher {
    /// A publisher on `eth0` of a namespace, with hop limit 1 as real publishers use.
    ///
    /// # Errors
    /// No such interface.
    pub fn open(ns: &Netns, journal: Arc<Journal>) -> Result<Self> {
        Self::open_from(ns, Ipv6Addr::UNSPECIFIED, journal)
    }

    /// As [`Publisher::open`], with one of the host's addresses as the source of every frame.
    ///
    /// # Errors
    /// No such interface, or no such address on it.
    pub fn open_from(ns: &Netns, source: Ipv6Addr, journal: Arc<Journal>) -> Result<Self> {
        let index = ns.interface_index(INTERFACE)?;
        let socket = ns.enter(|| -> Result<UdpSocket> {
            let socket = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
            socket.set_multicast_if_v6(index)?;
            socket.set_multicast_hops_v6(1)?;
            socket.set_send_buffer_size(4 << 20)?;
            socket.bind(&SocketAddrV6::new(source, 0, 0, 0).into())?;
            Ok(socket.into())
        })?;
        Ok(Self { socket, journal, sent: AtomicU64::new(0) })
    }

    /// The port that it sends from.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn port(&self) -> Result<u16> {
        Ok(self.socket.local_addr()?.port())
    }

    /// Hop limit of what is sent from now on.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_hop_limit(&self, hops: u8) -> Result<()> {
        socket2::SockRef::from(&self.socket).set_multicast_hops_v6(u32::from(hops))?;
        Ok(())
    }

    /// Sends one datagram to a group's port 9001 and notes it.
    ///
    /// # Errors
    /// The interface is down, or the datagram is too long for UDP.
    pub fn send(&self, group: Ipv6Addr, frame: &[u8]) -> Result<Option<FrameKey>> {
        let key = self.journal.record(frame);
        self.socket
            .send_to(frame, SocketAddrV6::new(group, DATA_PORT, 0, 0))
            .with_context(|| format!("publish {} bytes to {group}", frame.len()))?;
        self.sent.fetch_add(1, Ordering::Relaxed);
        Ok(key)
    }

    /// As [`Publisher::send`], and notes nothing: for more frames than a journal holds.
    ///
    /// # Errors
    /// As [`Publisher::send`].
    pub fn send_unnoted(&self, group: Ipv6Addr, frame: &[u8]) -> Result<()> {
        let to = SocketAddrV6::new(group, DATA_PORT, 0, 0);
        self.socket.send_to(frame, to).with_context(|| format!("publish {} bytes to {group}", frame.len()))?;
        self.sent.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Sends the next frame of a flow to its group.
    ///
    /// # Errors
    /// As [`Publisher::send`].
    pub fn publish(&self, flow: &mut Flow) -> Result<Option<FrameKey>> {
        let index = flow.group_index();
        let frame = flow.next_frame();
        self.send(group(index), &frame)
    }

    /// Frames sent so far, cacheable or not.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Publishes `rate` frames a second for `length`, or until `stop` is set; `choose` says which flow is next.
    ///
    /// # Errors
    /// As [`Publisher::send`].
    pub fn run(
        &self,
        flows: &mut [Flow],
        rate: u32,
        length: Duration,
        stop: &AtomicBool,
        mut choose: impl FnMut(u64) -> usize,
    ) -> Result<u64> {
        let mut done = 0;
        self.pace(rate, length, stop, |number| {
            let at = choose(number);
            let flow = flows.get_mut(at).context("no such flow")?;
            self.publish(flow)?;
            done += 1;
            Ok(true)
        })?;
        Ok(done)
    }

    /// Calls `step` `rate` times a second, evenly to about a millisecond, until it says false, `length` is over or `stop` is set.
    ///
    /// # Errors
    /// What `step` returns.
    pub fn pace(
        &self,
        rate: u32,
        length: Duration,
        stop: &AtomicBool,
        mut step: impl FnMut(u64) -> Result<bool>,
    ) -> Result<()> {
        let start = Instant::now();
        let mut done = 0;
        while !stop.load(Ordering::Relaxed) {
            let elapsed = start.elapsed().min(length);
            let due = u64::try_from(elapsed.as_micros())? * u64::from(rate) / 1_000_000;
            while done < due {
                if !step(done)? {
                    return Ok(());
                }
                done += 1;
            }
            if elapsed == length {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}
