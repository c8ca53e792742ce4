//! The kernel's routes and neighbours by netlink (rtnetlink(7)).

use std::collections::HashSet;
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nametoindex};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::constants::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};

use super::table::{Hop, Route, Target};

/// RTNLGRP_NEIGH, RTNLGRP_IPV6_IFADDR and RTNLGRP_IPV6_ROUTE of linux/rtnetlink.h.
const GROUPS: [u32; 3] = [3, 9, 11];
/// Bytes of changes that may wait; when they are too many the tables are read anew.
const BUFFER: usize = 1 << 20;
/// Header of a netlink message; each begins at a multiple of four.
const HEADER: usize = 16;

/// What has changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Change {
    /// A neighbour was resolved, or is so no more.
    Neighbour(Hop, bool),
    /// Routes or addresses changed.
    Routes,
    /// Changes were lost.
    Lost,
}

/// What came of asking for a resolution.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Asked {
    /// The kernel resolves a neighbour that it did not know.
    Begun,
    /// The kernel knew the neighbour, and resolves it unless it is resolved.
    Known,
}

/// Two sockets: one that is told of changes, one that asks.
pub(super) struct Kernel {
    changes: Socket,
    requests: Socket,
    sequence: u32,
}

impl Kernel {
    /// Opens both. From here on no change is missed.
    ///
    /// # Errors
    /// What the system returns.
    pub(super) fn open() -> io::Result<Self> {
        let mut changes = Socket::new(NETLINK_ROUTE)?;
        changes.bind_auto()?;
        changes.set_non_blocking(true)?;
        changes.set_rx_buf_sz(i32::try_from(BUFFER).unwrap_or(i32::MAX))?;
        for group in GROUPS {
            changes.add_membership(group)?;
        }
        let mut requests = Socket::new(NETLINK_ROUTE)?;
        requests.bind_auto()?;
        requests.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { changes, requests, sequence: 0 })
    }

    /// The changes that wait.
    ///
    /// # Errors
    /// What the system returns.
    pub(super) fn changes(&self) -> io::Result<Vec<Change>> {
        let mut all = Vec::new();
        loop {
            match self.changes.recv_from_full() {
                Ok((bytes, _)) => each(&bytes, |message| {
                    if let NetlinkPayload::InnerMessage(inner) = message.payload {
                        all.extend(change(&inner));
                    }
                }),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(all),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => all.push(Change::Lost),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// All neighbours that are resolved.
    ///
    /// # Errors
    /// What the system returns.
    pub(super) fn neighbours(&mut self) -> io::Result<Vec<Hop>> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet6;
        let mut all = Vec::new();
        self.request(RouteNetlinkMessage::GetNeighbour(message), NLM_F_DUMP, |answer| {
            if let Some(Change::Neighbour(hop, true)) = change(&answer) {
                all.push(hop);
            }
        })?;
        Ok(all)
    }

    /// The routes of the main and the local table, and the interfaces that resolve no addresses.
    ///
    /// # Errors
    /// What the system returns.
    pub(super) fn routes(&mut self) -> io::Result<(Vec<Route>, HashSet<u32>)> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet6;
        let mut all = Vec::new();
        self.request(RouteNetlinkMessage::GetRoute(message), NLM_F_DUMP, |answer| {
            if let RouteNetlinkMessage::NewRoute(message) = answer {
                all.extend(route(&message));
            }
        })?;
        let is_plain = |flags: InterfaceFlags| {
            flags.intersects(InterfaceFlags::IFF_NOARP | InterfaceFlags::IFF_LOOPBACK | InterfaceFlags::IFF_POINTOPOINT)
        };
        let plain = getifaddrs()?
            .filter(|one| is_plain(one.flags))
            .filter_map(|one| if_nametoindex(one.interface_name.as_str()).ok())
            .collect();
        Ok((all, plain))
    }

    /// Asks the kernel to resolve a neighbour, without a datagram that would wait for it.
    ///
    /// # Errors
    /// EPERM without CAP_NET_ADMIN, ENOBUFS when the kernel's table is full.
    pub(super) fn resolve(&mut self, hop: &Hop) -> io::Result<Asked> {
        let mut message = of(hop);
        message.header.flags = NeighbourFlags::Use;
        let ask = RouteNetlinkMessage::NewNeighbour(message);
        match self.request(ask.clone(), NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, |_| {}) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                self.request(ask, NLM_F_ACK | NLM_F_CREATE, |_| {})?;
                Ok(Asked::Known)
            }
            other => other.map(|()| Asked::Begun),
        }
    }

    /// True when the kernel holds the neighbour as resolved now.
    ///
    /// # Errors
    /// What the system returns.
    pub(super) fn is_resolved(&mut self, hop: &Hop) -> io::Result<bool> {
        let mut found = false;
        self.request(RouteNetlinkMessage::GetNeighbour(of(hop)), NLM_F_ACK, |answer| {
            found |= change(&answer) == Some(Change::Neighbour(*hop, true));
        })?;
        Ok(found)
    }

    /// Takes a neighbour out of the kernel's table, which has room for a thousand.
    ///
    /// # Errors
    /// What the system returns.
    pub(super) fn forget(&mut self, hop: &Hop) -> io::Result<()> {
        self.request(RouteNetlinkMessage::DelNeighbour(of(hop)), NLM_F_ACK, |_| {})
    }

    /// Sends a request and hands every message of the answer to `take`.
    fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        mut take: impl FnMut(RouteNetlinkMessage),
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.requests.send(&bytes, 0)?;
        let mut end = None;
        while end.is_none() {
            let (bytes, _) = match self.requests.recv_from_full() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            each(&bytes, |message| {
                if message.header.sequence_number != self.sequence {
                    return;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => take(inner),
                    NetlinkPayload::Done(_) => end = Some(Ok(())),
                    NetlinkPayload::Error(error) if error.code.is_some() => end = Some(Err(error.to_io())),
                    NetlinkPayload::Error(_) => end = Some(Ok(())),
                    _ => {}
                }
            });
        }
        end.unwrap_or(Ok(()))
    }
}

impl AsFd for Kernel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket is this value's own and open as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(self.changes.as_raw_fd()) }
    }
}

/// Every message of a datagram; what this library cannot read is left out.
fn each(mut bytes: &[u8], mut take: impl FnMut(NetlinkMessage<RouteNetlinkMessage>)) {
    while let Some(length) = bytes.first_chunk::<4>() {
        let length = usize::try_from(u32::from_ne_bytes(*length)).unwrap_or(usize::MAX);
        let Some(one) = bytes.get(..length).filter(|one| one.len() >= HEADER) else {
            return;
        };
        if let Ok(message) = NetlinkMessage::deserialize(one) {
            take(message);
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
}

fn of(hop: &Hop) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet6;
    message.header.ifindex = hop.interface;
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet6(hop.address)));
    message
}

fn change(message: &RouteNetlinkMessage) -> Option<Change> {
    match message {
        RouteNetlinkMessage::NewNeighbour(neighbour) => {
            let state = neighbour.header.state;
            let is_resolved = matches!(
                state,
                NeighbourState::Reachable
                    | NeighbourState::Stale
                    | NeighbourState::Delay
                    | NeighbourState::Probe
                    | NeighbourState::Noarp
                    | NeighbourState::Permanent
            );
            Some(Change::Neighbour(hop_of(neighbour)?, is_resolved))
        }
        RouteNetlinkMessage::DelNeighbour(neighbour) => Some(Change::Neighbour(hop_of(neighbour)?, false)),
        RouteNetlinkMessage::NewRoute(_)
        | RouteNetlinkMessage::DelRoute(_)
        | RouteNetlinkMessage::NewAddress(_)
        | RouteNetlinkMessage::DelAddress(_) => Some(Change::Routes),
        _ => None,
    }
}

fn hop_of(message: &NeighbourMessage) -> Option<Hop> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(*address),
        _ => None,
    })?;
    (message.header.family == AddressFamily::Inet6).then_some(Hop { interface: message.header.ifindex, address })
}

fn route(message: &RouteMessage) -> Option<Route> {
    const RT_TABLE_LOCAL: u8 = 255;
    let mut prefix = Ipv6Addr::UNSPECIFIED;
    let (mut interface, mut gateway, mut metric, mut several) = (None, None, 0, false);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => prefix = *address,
            RouteAttribute::Gateway(RouteAddress::Inet6(address)) => gateway = Some(*address),
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::MultiPath(_) => several = true,
            _ => {}
        }
    }
    let is_known = [RouteHeader::RT_TABLE_MAIN, RT_TABLE_LOCAL].contains(&message.header.table);
    let target = match (message.header.kind, interface, gateway) {
        (RouteType::Unicast, Some(interface), Some(address)) if !several => Target::Gateway(Hop { interface, address }),
        (RouteType::Unicast, Some(interface), None) if !several => Target::Link(interface),
        _ => Target::Here,
    };
    is_known.then_some(Route { prefix, length: message.header.destination_prefix_length, metric, target })
}
