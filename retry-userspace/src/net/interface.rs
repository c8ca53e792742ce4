//! Network interfaces: which there are, their addresses, MTU and hop limit.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_indextoname};
use thiserror::Error;

/// Requests of ioctl(2) in the type that the C library gives them.
const SIOCETHTOOL: libc::Ioctl = libc::SIOCETHTOOL as libc::Ioctl;
const SIOCGIFMTU: libc::Ioctl = libc::SIOCGIFMTU as libc::Ioctl;

/// Why an interface could not be used.
#[derive(Debug, Error)]
pub enum InterfaceError {
    /// No interface has this name.
    #[error("no interface {name:?}; there are: {existing}")]
    NotFound {
        /// The name that was asked for.
        name: String,
        /// The names that exist, separated by commas.
        existing: String,
    },
    /// The system did not list its interfaces.
    #[error("cannot list the network interfaces: {0}")]
    List(#[source] io::Error),
    /// The system did not tell a property of an interface.
    #[error("cannot read the {what} of interface {name:?}: {source}")]
    Property {
        /// The interface.
        name: String,
        /// The property.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// An IPv6 address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: Ipv6Addr,
    /// How long it can be relied on.
    pub state: AddressState,
}

/// What the kernel says about an address's life (RFC 4862, RFC 8981).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressState {
    /// Stays.
    Stable,
    /// A privacy address that is replaced within a day, or one that is deprecated.
    Passing,
    /// Duplicate address detection has not ended, or has found a duplicate: a socket cannot be bound to it.
    Unusable,
}

/// A network interface at the time of the look-up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index, above 0.
    pub index: u32,
    /// Its Ethernet address; loopback and tunnels have none.
    pub mac: Option<[u8; 6]>,
    /// Bytes of an IPv6 packet that it carries unfragmented.
    pub mtu: u32,
    /// Bytes of an IPv6 packet that the other end of a veth pair takes, where it can be seen.
    pub peer_mtu: Option<u32>,
    /// It is administratively up.
    pub up: bool,
    /// Its link is up: there is a carrier.
    pub carrier: bool,
    /// It is the loopback interface.
    pub loopback: bool,
    /// It carries multicast.
    pub multicast: bool,
    /// Its IPv6 addresses in the kernel's order.
    pub addresses: Vec<Address>,
}

impl Interface {
    /// The interface of this name.
    ///
    /// # Errors
    /// [`InterfaceError::NotFound`] names those that exist; the others tell what the system refused.
    pub fn by_name(name: &str) -> Result<Self, InterfaceError> {
        Self::among(&list()?, name).cloned()
    }

    /// The interface of this name among `all`.
    ///
    /// # Errors
    /// [`InterfaceError::NotFound`] names those that exist.
    pub fn among<'a>(all: &'a [Self], name: &str) -> Result<&'a Self, InterfaceError> {
        all.iter().find(|interface| interface.name == name).ok_or_else(|| InterfaceError::NotFound {
            name: name.to_owned(),
            existing: all.iter().map(|interface| interface.name.as_str()).collect::<Vec<_>>().join(", "),
        })
    }

    /// Bytes of an IPv6 packet that arrive by it unfragmented: a veth pair drops what is longer than either end's MTU.
    #[must_use]
    pub fn reach(&self) -> u32 {
        self.peer_mtu.map_or(self.mtu, |peer| peer.min(self.mtu))
    }

    /// The hop limit that the system gives unicast datagrams which leave by this interface.
    ///
    /// # Errors
    /// [`InterfaceError::Property`] when `/proc/sys/net/ipv6/conf/<name>/hop_limit` cannot be read, as when IPv6 is off.
    pub fn unicast_hop_limit(&self) -> Result<u8, InterfaceError> {
        let fail = |source| InterfaceError::Property { name: self.name.clone(), what: "hop limit", source };
        let text = fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{}/hop_limit", self.name)).map_err(fail)?;
        text.trim()
            .parse()
            .map_err(|_| fail(io::Error::new(io::ErrorKind::InvalidData, format!("not 0 to 255: {text:?}"))))
    }
}

/// The first global or unique local unicast address, in the kernel's order.
///
/// A stable address goes before a passing one: listeners keep the address of an ADVERT for three of its intervals.
#[must_use]
pub(crate) fn first_global_unicast(interface: &Interface) -> Option<Ipv6Addr> {
    let first = |state| {
        interface
            .addresses
            .iter()
            .find(|address| address.state == state && is_global_unicast(address.ip))
            .map(|address| address.ip)
    };
    first(AddressState::Stable).or_else(|| first(AddressState::Passing))
}

/// Global or unique local: not unspecified, loopback, link-local, multicast or IPv4 in disguise.
fn is_global_unicast(ip: Ipv6Addr) -> bool {
    !(ip.is_unspecified()
        || ip.is_loopback()
        || ip.is_unicast_link_local()
        || ip.is_multicast()
        || ip.to_ipv4_mapped().is_some())
}

/// The addresses of this host that the stack would not send an answer to by the interface `nack`: those of every interface,
/// but of the link-local ones only `nack`'s, for the same address may be another host's there.
#[must_use]
pub(crate) fn own_addresses(all: &[Interface], nack: u32) -> BTreeSet<Ipv6Addr> {
    all.iter()
        .flat_map(|interface| interface.addresses.iter().map(move |address| (interface.index, address.ip)))
        .filter(|(index, ip)| *index == nack || !ip.is_unicast_link_local())
        .map(|(_, ip)| ip)
        .collect()
}

/// The interface among `all` that holds `ip`, if one does.
#[must_use]
pub(crate) fn holder_among(all: &[Interface], ip: Ipv6Addr) -> Option<&Interface> {
    all.iter().find(|interface| interface.addresses.iter().any(|address| address.ip == ip))
}

/// The name of the interface of this index, or the index where there is none any more.
#[must_use]
pub(crate) fn name_of(interface: u32) -> String {
    if_indextoname(interface)
        .ok()
        .and_then(|name| name.into_string().ok())
        // For an index that no interface has, nix 0.30 returns an empty name and no error.
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| interface.to_string())
}

/// All interfaces of this network namespace, in the kernel's order.
///
/// # Errors
/// [`InterfaceError::List`] or [`InterfaceError::Property`] when the system does not tell.
pub(crate) fn list() -> Result<Vec<Interface>, InterfaceError> {
    // The dump gives the order of addresses, if_inet6 their states.
    let states = fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap_or_default();
    let socket = OwnedFd::from(super::options::udp_socket().map_err(InterfaceError::List)?);
    let mut all: Vec<Interface> = Vec::new();
    for entry in getifaddrs().map_err(|errno| InterfaceError::List(errno.into()))? {
        let Some(address) = entry.address else {
            continue;
        };
        if let Some(link) = address.as_link_addr() {
            all.push(Interface {
                index: u32::try_from(link.ifindex()).unwrap_or_default(),
                mac: link.addr().filter(|mac| *mac != [0; 6]),
                mtu: mtu(&socket, &entry.interface_name)?,
                peer_mtu: None,
                up: entry.flags.contains(InterfaceFlags::IFF_UP),
                carrier: entry.flags.contains(InterfaceFlags::IFF_LOWER_UP),
                loopback: entry.flags.contains(InterfaceFlags::IFF_LOOPBACK),
                multicast: entry.flags.contains(InterfaceFlags::IFF_MULTICAST),
                name: entry.interface_name,
                addresses: Vec::new(),
            });
        } else if let Some(v6) = address.as_sockaddr_in6()
            && let Some(interface) = all.iter_mut().find(|one| one.name == entry.interface_name)
        {
            interface.addresses.push(Address { ip: v6.ip(), state: state_of(&states, v6.ip(), interface.index) });
        }
    }
    Ok(all)
}

/// State of an address by the lines of if_inet6: address, interface index, prefix length, scope, flags (hexadecimal), name.
fn state_of(table: &str, ip: Ipv6Addr, index: u32) -> AddressState {
    let flags = table.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let address = u128::from_str_radix(fields.next()?, 16).ok()?;
        let holder = u32::from_str_radix(fields.next()?, 16).ok()?;
        let flags = u32::from_str_radix(fields.nth(2)?, 16).ok()?;
        (address == ip.to_bits() && holder == index).then_some(flags)
    });
    AddressState::of_flags(flags.unwrap_or_default())
}

impl AddressState {
    /// The state by the kernel's flags of an address.
    pub(crate) const fn of_flags(flags: u32) -> Self {
        // linux/if_addr.h; IFA_F_TEMPORARY shares its bit with IFA_F_SECONDARY.
        const TEMPORARY: u32 = 0x01;
        const DUPLICATE: u32 = 0x08;
        const DEPRECATED: u32 = 0x20;
        const TENTATIVE: u32 = 0x40;
        const OPTIMISTIC: u32 = 0x04;
        match flags {
            flags if flags & DUPLICATE != 0 => AddressState::Unusable,
            flags if flags & TENTATIVE != 0 && flags & OPTIMISTIC == 0 => AddressState::Unusable,
            flags if flags & (TEMPORARY | DEPRECATED) != 0 => AddressState::Passing,
            _ => AddressState::Stable,
        }
    }
}

/// A request about the interface of this name.
fn request(name: &str, ifr_ifru: libc::__c_anonymous_ifr_ifru) -> libc::ifreq {
    let mut request = libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru };
    // The last byte stays 0: a longer name would not be one of the kernel's.
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request
}

/// `struct ethtool_drvinfo` of linux/ethtool.h.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware: [u8; 32],
    bus: [u8; 32],
    expansion_rom: [u8; 32],
    reserved: [u8; 12],
    lengths: [u32; 5],
}

/// The driver of the interface of this name in this network namespace, as the kernel says (`ETHTOOL_GDRVINFO`).
///
/// # Errors
/// EOPNOTSUPP for a driver that does not tell, such as that of the loopback interface; ENODEV for no interface.
pub(crate) fn driver(name: &str) -> io::Result<String> {
    // linux/ethtool.h.
    const ETHTOOL_GDRVINFO: u32 = 3;
    let socket = super::options::udp_socket()?;
    let mut info = DriverInfo {
        command: ETHTOOL_GDRVINFO,
        driver: [0; 32],
        version: [0; 32],
        firmware: [0; 32],
        bus: [0; 32],
        expansion_rom: [0; 32],
        reserved: [0; 12],
        lengths: [0; 5],
    };
    let place = (&raw mut info).cast();
    let mut request = request(name, libc::__c_anonymous_ifr_ifru { ifru_data: place });
    // SAFETY: the descriptor is open; SIOCETHTOOL reads one ifreq and, by its command, writes one ethtool_drvinfo where its
    // data points; both outlive the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(String::from_utf8_lossy(info.driver.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned())
}

fn mtu(socket: &OwnedFd, name: &str) -> Result<u32, InterfaceError> {
    let fail = |source| InterfaceError::Property { name: name.to_owned(), what: "MTU", source };
    let mut request = request(name, libc::__c_anonymous_ifr_ifru { ifru_mtu: 0 });
    // SAFETY: the descriptor is open and SIOCGIFMTU reads and writes one ifreq, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGIFMTU, &raw mut request) };
    if result != 0 {
        return Err(fail(io::Error::last_os_error()));
    }
    // SAFETY: the member was initialised above, and the kernel wrote this one.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    u32::try_from(mtu).map_err(|_| fail(io::Error::from(io::ErrorKind::InvalidData)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::{Pair, in_namespace, ip};

    fn with(addresses: &[(&str, AddressState)]) -> Interface {
        Interface {
            name: "eth0".into(),
            index: 2,
            mac: None,
            mtu: 1500,
            peer_mtu: None,
            up: true,
            carrier: true,
            loopback: false,
            multicast: true,
            addresses: addresses
                .iter()
                .map(|&(ip, state)| Address { ip: ip.parse().expect("an address"), state })
                .collect(),
        }
    }

    fn holder_of(ip: Ipv6Addr) -> Option<Interface> {
        holder_among(&list().expect("a list"), ip).cloned()
    }

    #[test]
    fn the_kernel_tells_the_driver_of_this_namespace() {
        in_namespace("the_kernel_tells_the_driver_of_this_namespace", |pair| {
            assert_eq!(driver(&pair.far.name).expect("it tells"), "veth");
            let unknown = driver("lo").expect_err("lo has none");
            assert_eq!(unknown.raw_os_error(), Some(libc::EOPNOTSUPP));
            assert_eq!(driver("nowhere").expect_err("none").raw_os_error(), Some(libc::ENODEV));
        });
    }

    #[test]
    fn loopback_is_found_by_name_and_by_address() {
        let lo = Interface::by_name("lo").expect("every namespace has lo");
        assert!(lo.loopback && lo.index > 0 && lo.mtu >= 1280);
        assert_eq!(lo.mac, None);
        let holder = holder_of(Ipv6Addr::LOCALHOST);
        assert_eq!(holder.map(|interface| interface.name).as_deref(), Some("lo"));
        assert_eq!(holder_of("2001:db8::dead".parse().expect("an address")), None);
        assert_eq!(first_global_unicast(&lo), None);
        assert!(lo.unicast_hop_limit().expect("a sysctl") > 0);
    }

    #[test]
    fn a_missing_interface_is_named_with_those_that_exist() {
        let error = Interface::by_name("nosuch7").expect_err("no such interface").to_string();
        assert!(error.starts_with("no interface \"nosuch7\"; there are: "), "{error}");
        assert!(error.contains("lo") && error.lines().count() == 1, "{error}");
    }

    #[test]
    fn only_global_and_unique_local_addresses_count() {
        use AddressState::{Passing, Stable, Unusable};
        let pick = |list: &[(&str, AddressState)]| first_global_unicast(&with(list)).map(|ip| ip.to_string());
        assert_eq!(pick(&[("fe80::1", Stable), ("::1", Stable), ("ff05::1", Stable)]), None);
        assert_eq!(
            pick(&[("fe80::1", Stable), ("fd10::20", Stable), ("2001:db8::1", Stable)]).as_deref(),
            Some("fd10::20")
        );
        assert_eq!(pick(&[("2001:db8::aa", Passing), ("2001:db8::1", Stable)]).as_deref(), Some("2001:db8::1"));
        assert_eq!(pick(&[("2001:db8::aa", Passing)]).as_deref(), Some("2001:db8::aa"));
        assert_eq!(pick(&[("fd10::20", Unusable)]), None);
    }

    #[test]
    fn link_local_addresses_of_other_interfaces_may_be_other_hosts() {
        use AddressState::Stable;
        let near = with(&[("fd10::1", Stable), ("fe80::1", Stable)]);
        let far = Interface { index: 3, ..with(&[("fd77::1", Stable), ("fe80::2", Stable)]) };
        let own = own_addresses(&[near, far], 2);
        let wanted = ["fd10::1", "fd77::1", "fe80::1"].map(|ip| ip.parse().expect("an address"));
        assert_eq!(own, BTreeSet::from(wanted));
    }

    #[test]
    fn states_are_read_from_if_inet6() {
        let table = "fd100000000000000000000000000020 02 40 00 80     eth0\n\
                     20010db80000000000000000000000aa 02 40 00 01     eth0\n\
                     fd100000000000000000000000000021 02 40 00 c0     eth0\n\
                     fd100000000000000000000000000020 03 40 00 48     eth1\n\
                     garbage\n";
        let state = |ip: &str, index| state_of(table, ip.parse().expect("an address"), index);
        assert_eq!(state("fd10::20", 2), AddressState::Stable);
        assert_eq!(state("fd10::20", 3), AddressState::Unusable);
        assert_eq!(state("fd10::21", 2), AddressState::Unusable);
        assert_eq!(state("2001:db8::aa", 2), AddressState::Passing);
    }

    #[test]
    fn a_veth_has_what_it_was_given() {
        in_namespace("a_veth_has_what_it_was_given", |Pair { near, .. }| {
            ip(&format!("link set {} mtu 1400 address 02:00:00:00:00:07", near.name));
            ip(&format!("addr add fd01::77/64 dev {} nodad preferred_lft 0", near.name));
            fs::write(format!("/proc/sys/net/ipv6/conf/{}/hop_limit", near.name), "37").expect("own namespace");
            let found = Interface::by_name(&near.name).expect("it exists");
            assert_eq!((found.mtu, found.mac), (1400, Some([2, 0, 0, 0, 0, 7])));
            assert!(found.up && !found.loopback && found.multicast);
            assert_eq!(found.unicast_hop_limit().expect("a sysctl"), 37);
            // The newest address comes first in the kernel's order, but it is deprecated.
            assert_eq!(first_global_unicast(&found), Some("fd01::1".parse().expect("an address")));
            let passing = holder_of("fd01::77".parse().expect("an address"));
            assert_eq!(passing, Some(found));
        });
    }
}
