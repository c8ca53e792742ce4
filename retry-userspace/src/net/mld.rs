//! Reports of multicast memberships, as the kernel sends them when a router asks (RFC 3810, RFC 2710): for routers and
//! switches that have forgotten what they were told, on links without a querier.
//!
//! The kernel reports by itself only what changes. A report of what stands changes nothing here, so nothing is lost or comes
//! twice.

use std::io;
use std::mem::MaybeUninit;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::options;

/// A membership: a group, and the sources that it is joined from; `None` is any source.
pub(crate) type Membership = (Ipv6Addr, Option<Vec<Ipv6Addr>>);

/// All MLDv2-capable routers (RFC 3810, section 5.2.14).
const ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);
/// ICMPv6 type of a query of either version.
const QUERY: u8 = 130;
/// ICMPv6 type of a version 1 report (RFC 2710, section 3).
const VERSION_1_REPORT: u8 = 131;
/// ICMPv6 type of a version 2 report (RFC 3810, section 5.2).
const VERSION_2_REPORT: u8 = 143;
/// Record type: these sources (RFC 3810, section 5.2.12).
const MODE_IS_INCLUDE: u8 = 1;
/// Record type: all sources but these.
const MODE_IS_EXCLUDE: u8 = 2;
/// ICMPv6 bytes in one packet of 1280 bytes, the least that every link carries: 40 are the IPv6 header, 8 its option.
const LONGEST: usize = 1_280 - 48;
/// Sources of one record that fit.
const MOST_SOURCES: usize = (LONGEST - 8 - 20) / 16;

/// Which version of MLD an interface speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Version {
    /// `net.ipv6.conf.<interface>.force_mld_version` is 1.
    One,
    /// Anything else. Routers of version 1 do not read it, and ask by themselves.
    Two,
}

/// Sends the reports of these memberships by the interface of this index.
///
/// # Errors
/// What the system returns: EPERM without CAP_NET_RAW; EADDRNOTAVAIL while the interface has no link-local address.
pub(crate) fn report(interface: u32, version: Version, memberships: &[Membership]) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    // A report by a host's own stack is not heard by it either.
    socket.set_multicast_loop_v6(false)?;
    socket.set_multicast_hops_v6(1)?;
    socket.set_multicast_if_v6(interface)?;
    options::alert_routers(&socket)?;
    let send = |to: Ipv6Addr, bytes: &[u8]| {
        socket.send_to(bytes, &SockAddr::from(SocketAddrV6::new(to, 0, 0, interface))).map(drop)
    };
    match version {
        Version::One => memberships.iter().try_for_each(|(group, _)| send(*group, &version_1(*group))),
        Version::Two => version_2(memberships).iter().try_for_each(|bytes| send(ROUTERS, bytes)),
    }
}

/// Waits for a query on the interface of this index: its source; `None` when none came within `patience`.
///
/// # Errors
/// What a raw socket returns: EPERM without CAP_NET_RAW.
pub(crate) fn await_query(interface: u32, patience: Duration) -> io::Result<Option<Ipv6Addr>> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    options::bind_to_interface(&socket, interface)?;
    let (end, mut bytes) = (Instant::now() + patience, [MaybeUninit::uninit(); 64]);
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        socket.set_read_timeout(Some(left))?;
        match socket.recv_from(&mut bytes) {
            Ok((length, from)) => {
                // SAFETY: the kernel has filled in the first byte of a message that is not empty.
                let kind = (length > 0).then(|| unsafe { bytes[0].assume_init() });
                if kind == Some(QUERY) {
                    return Ok(from.as_socket_ipv6().map(|from| *from.ip()));
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
}

/// One report. The kernel fills in the checksum.
fn version_1(group: Ipv6Addr) -> Vec<u8> {
    let mut bytes = vec![VERSION_1_REPORT, 0, 0, 0, 0, 0, 0, 0];
    bytes.extend(group.octets());
    bytes
}

/// The memberships in as few reports as they fit in.
fn version_2(memberships: &[Membership]) -> Vec<Vec<u8>> {
    let mut reports: Vec<(u16, Vec<u8>)> = Vec::new();
    for record in memberships.iter().flat_map(records) {
        match reports.last_mut() {
            Some((count, bytes)) if bytes.len() + record.len() <= LONGEST => {
                *count += 1;
                bytes.extend(record);
            }
            _ => reports.push((1, [&[VERSION_2_REPORT, 0, 0, 0, 0, 0, 0, 0][..], &record].concat())),
        }
    }
    let finish = |(count, mut bytes): (u16, Vec<u8>)| {
        bytes[6..8].copy_from_slice(&count.to_be_bytes());
        bytes
    };
    reports.into_iter().map(finish).collect()
}

/// The records of one membership: several where its sources do not fit into one (RFC 3810, section 5.2.15).
fn records((group, sources): &Membership) -> Vec<Vec<u8>> {
    let record = |kind: u8, sources: &[Ipv6Addr]| {
        let count = u16::try_from(sources.len()).unwrap_or(u16::MAX);
        let mut bytes = vec![kind, 0];
        bytes.extend(count.to_be_bytes());
        bytes.extend(group.octets());
        bytes.extend(sources.iter().flat_map(Ipv6Addr::octets));
        bytes
    };
    match sources {
        None => vec![record(MODE_IS_EXCLUDE, &[])],
        Some(sources) => sources.chunks(MOST_SOURCES).map(|some| record(MODE_IS_INCLUDE, some)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(index: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0x000b, index)
    }

    #[test]
    fn a_report_is_as_the_rfc_has_it() {
        let source = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
        let reports = version_2(&[(group(1), None), (group(2), Some(vec![source]))]);
        let mut expected = vec![143, 0, 0, 0, 0, 0, 0, 2, 2, 0, 0, 0];
        expected.extend(group(1).octets());
        expected.extend([1, 0, 0, 1]);
        expected.extend(group(2).octets());
        expected.extend(source.octets());
        assert_eq!(reports, [expected]);
        assert_eq!(version_1(group(1)).len(), 24);
    }

    #[test]
    fn many_memberships_take_several_reports() {
        let all: Vec<Membership> = (0..200).map(|index| (group(index), None)).collect();
        let reports = version_2(&all);
        assert!(reports.iter().all(|report| report.len() <= LONGEST));
        let counts: Vec<u16> = reports.iter().map(|bytes| u16::from_be_bytes([bytes[6], bytes[7]])).collect();
        assert_eq!((counts.len(), counts.iter().sum::<u16>()), (4, 200));
        let sources: Vec<Ipv6Addr> = (0..100).map(group).collect();
        assert_eq!(version_2(&[(group(0), Some(sources))]).len(), 2);
        assert!(version_2(&[(group(0), Some(Vec::new()))]).is_empty(), "no source: no membership");
    }
}
