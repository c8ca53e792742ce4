//! Any-source joins of the fabric's groups, spread over as many sockets as they need.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use socket2::Socket;
use thiserror::Error;

use crate::net::interface::name_of;
use crate::net::options;

/// Bytes of receive buffer that each socket asks for: about 20,000 datagrams of 400 bytes.
pub(crate) const RECEIVE_BUFFER: usize = 16 << 20;

/// Kernel setting that limits the joins of one socket.
const OPTMEM_MAX: &str = "net.core.optmem_max";

/// How sockets hand over what arrives, always with its destination address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Delivery {
    /// Datagram by datagram, on a port that other sockets of ours may share: the NACK socket's.
    Single,
    /// With neighbours of one sender to one group merged where the kernel does that (UDP_GRO), which saves most of what a
    /// datagram costs it. What it drops then counts as one, too.
    Merged,
    /// Nothing: a membership socket, which is bound to no port.
    None,
}

/// Why the groups could not be joined.
#[derive(Debug, Error)]
pub enum JoinError {
    /// The system refused a socket, one of its options or the port.
    #[error("cannot open a socket on multicast port {port}: {source}")]
    Socket {
        /// UDP port.
        port: u16,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused a group: not a multicast address, or no such interface.
    #[error("cannot join {group} on interface {interface}: {source}")]
    Group {
        /// The group.
        group: Ipv6Addr,
        /// The interface's name, or its index when it has none any more.
        interface: String,
        /// What the system said.
        source: io::Error,
    },
    /// The process has as many sockets as it may have.
    #[error(
        "cannot open another socket on multicast port {port}: {source}; raise the limit of open files (RLIMIT_NOFILE, \
         LimitNOFILE= of systemd; now {limit})"
    )]
    Files {
        /// UDP port.
        port: u16,
        /// The soft limit, or `unknown`.
        limit: String,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused a source of a group: neither is what it should be, or no such interface.
    #[error("cannot join {group} from {source_address} on interface {interface}: {source}")]
    Source {
        /// The source.
        source_address: Ipv6Addr,
        /// The group.
        group: Ipv6Addr,
        /// The interface's name, or its index when it has none any more.
        interface: String,
        /// What the system said.
        source: io::Error,
    },
    /// The thread that joins cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// Not even a fresh socket had room for one more group.
    #[error(
        "joined {joined} of {wanted} groups on interface {interface}: the kernel has no room for another join in a fresh socket; raise \
         sysctl {OPTMEM_MAX} (now {optmem_max} bytes)"
    )]
    NoRoom {
        /// Groups joined before.
        joined: usize,
        /// Groups asked for.
        wanted: usize,
        /// The interface's name, or its index when it has none any more.
        interface: String,
        /// Value of `net.core.optmem_max`, or `unknown`.
        optmem_max: String,
    },
}

impl JoinError {
    pub(super) fn no_socket(port: u16, source: io::Error) -> Self {
        if source.raw_os_error() != Some(libc::EMFILE) {
            return Self::Socket { port, source };
        }
        let limit =
            getrlimit(Resource::RLIMIT_NOFILE).map_or_else(|_| "unknown".to_owned(), |(soft, _)| soft.to_string());
        Self::Files { port, limit, source }
    }
}

/// Sockets that have joined a list of groups on one interface. Dropping them leaves the groups.
///
/// A datagram to a joined group arrives at exactly one of the sockets. Unicast to the same port also arrives; the destination address of
/// a [`crate::net::batch::Datagram`] tells it apart.
#[derive(Debug)]
pub(crate) struct Joins {
    sockets: Vec<Socket>,
}

impl Joins {
    /// Joins each of `groups` once on the interface of index `interface`, on UDP port `port`, datagram by datagram.
    ///
    /// # Errors
    /// As [`Joins::open_for`].
    #[cfg(test)]
    pub(crate) fn open(interface: u32, port: u16, groups: &[Ipv6Addr]) -> Result<Self, JoinError> {
        Self::open_for(Delivery::Single, interface, port, groups)
    }

    /// Joins each of `groups` once on the interface of index `interface`, on UDP port `port`.
    ///
    /// A socket holds as many joins as `net.core.optmem_max` has room for (about 2,340 at 128 KiB); the next takes over from there.
    ///
    /// # Errors
    /// [`JoinError`]; none of the joins stays.
    pub(crate) fn open_for(
        delivery: Delivery,
        interface: u32,
        port: u16,
        groups: &[Ipv6Addr],
    ) -> Result<Self, JoinError> {
        Self::open_by(delivery, interface, port, groups, |socket, group| socket.join_multicast_v6(&group, interface))
    }

    /// As [`Joins::open_for`], for the datagrams of one source alone.
    ///
    /// # Errors
    /// As [`Joins::open_for`].
    pub(crate) fn open_from(
        delivery: Delivery,
        interface: u32,
        port: u16,
        groups: &[Ipv6Addr],
        source: Ipv6Addr,
    ) -> Result<Self, JoinError> {
        Self::open_by(delivery, interface, port, groups, |socket, group| {
            options::join_source(socket, interface, group, source)
        })
    }

    fn open_by(
        delivery: Delivery,
        interface: u32,
        port: u16,
        groups: &[Ipv6Addr],
        join: impl Fn(&Socket, Ipv6Addr) -> io::Result<()>,
    ) -> Result<Self, JoinError> {
        // Joined on two sockets, a group's datagrams would arrive twice.
        let mut seen = HashSet::with_capacity(groups.len());
        let groups: Vec<Ipv6Addr> = groups.iter().copied().filter(|group| seen.insert(*group)).collect();
        let fail = |source| JoinError::no_socket(port, source);
        let mut socket = open_socket(delivery, interface, port).map_err(fail)?;
        let mut sockets = Vec::new();
        let mut on_this_socket = 0;
        for (joined, &group) in groups.iter().enumerate() {
            let mut result = join(&socket, group);
            if on_this_socket > 0 && result.as_ref().is_err_and(has_no_room) {
                let next = open_socket(delivery, interface, port).map_err(fail)?;
                sockets.push(std::mem::replace(&mut socket, next));
                on_this_socket = 0;
                result = join(&socket, group);
            }
            match result {
                Ok(()) => on_this_socket += 1,
                Err(error) if has_no_room(&error) => {
                    return Err(JoinError::NoRoom {
                        joined,
                        wanted: groups.len(),
                        interface: name_of(interface),
                        optmem_max: optmem_max(),
                    });
                }
                Err(source) => {
                    return Err(JoinError::Group { group, interface: name_of(interface), source });
                }
            }
        }
        sockets.push(socket);
        Ok(Self { sockets })
    }

    /// The sockets, at least one, in the order of the groups.
    pub(crate) fn fds(&self) -> impl ExactSizeIterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().map(AsFd::as_fd)
    }

    /// The sockets alone; they hold the joins.
    pub(super) fn into_sockets(self) -> Vec<Socket> {
        self.sockets
    }
}

pub(super) fn open_socket(delivery: Delivery, interface: u32, port: u16) -> io::Result<Socket> {
    let socket = options::udp_socket()?;
    if delivery == Delivery::None {
        return Ok(socket);
    }
    // Set before the bind, so that nothing of other sockets' groups or interfaces is queued in between.
    options::own_groups_only(&socket)?;
    options::bind_to_interface(&socket, interface)?;
    // Unicast to the port arrives as well: the destination tells it apart. Merged datagrams have one destination.
    options::tell_destination(&socket)?;
    match delivery {
        Delivery::Single => options::share_with_own(&socket)?,
        Delivery::Merged => options::take_merged(&socket)?,
        Delivery::None => {}
    }
    options::tell_dropped(&socket)?;
    options::set_receive_buffer(&socket, RECEIVE_BUFFER)?;
    socket.bind(&SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0).into())?;
    Ok(socket)
}

pub(super) fn has_no_room(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::ENOMEM | Errno::ENOBUFS))
}

pub(super) fn optmem_max() -> String {
    fs::read_to_string("/proc/sys/net/core/optmem_max")
        .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::ingress::testing::take_all;
    use crate::net::multicast::{self, Egress};
    use crate::net::testing::{Pair, in_namespace, ip};

    const PORT: u16 = 9001;

    fn group(index: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0x000b, index)
    }

    fn publisher() -> Socket {
        options::udp_socket().expect("a socket")
    }

    fn publish(socket: &Socket, pair: &Pair, to: Ipv6Addr) {
        let egress = Egress { interface: pair.near.index, source: Ipv6Addr::UNSPECIFIED, port: PORT, hop_limit: 1 };
        multicast::send(socket, &egress, to, &to.octets()).expect("sent");
    }

    /// Everything that arrives until nothing does for a while: (socket, destination, bytes).
    fn drain<'a>(fds: impl IntoIterator<Item = BorrowedFd<'a>>) -> Vec<(usize, Ipv6Addr, Vec<u8>)> {
        let mut all = Vec::new();
        take_all(fds, |at, one| all.push((at, one.destination.expect("asked for"), one.bytes.to_vec())));
        all
    }

    #[test]
    fn each_datagram_arrives_once_over_many_sockets() {
        in_namespace("each_datagram_arrives_once_over_many_sockets", |pair| {
            let mut groups: Vec<_> = (0..5_000).map(group).collect();
            // Asked for again: first on the first socket, now it would land on the last.
            groups.extend([group(0), group(1)]);
            let joins = Joins::open(pair.far.index, PORT, &groups).expect("joined");
            assert!(joins.fds().len() >= 2, "{}", joins.fds().len());
            let publisher = publisher();
            for index in (0..5_000).step_by(7).chain([0, 4_999]) {
                publish(&publisher, &pair, group(index));
            }
            let mut count: HashMap<Ipv6Addr, u32> = HashMap::new();
            let mut sockets = HashSet::new();
            for (socket, destination, bytes) in drain(joins.fds()) {
                assert_eq!(bytes, destination.octets());
                *count.entry(destination).or_default() += 1;
                sockets.insert(socket);
            }
            assert_eq!(sockets.len(), joins.fds().len(), "every socket has its share");
            let expected: HashMap<_, _> = (0..5_000)
                .step_by(7)
                .map(|index| (group(index), if index == 0 { 2 } else { 1 }))
                .chain([(group(4_999), 1)])
                .collect();
            assert_eq!(count, expected);
            for socket in joins.fds() {
                assert_eq!(options::dropped(&socket).expect("a count"), 0);
            }
        });
    }

    #[test]
    fn groups_and_interfaces_of_other_sockets_stay_away() {
        in_namespace("groups_and_interfaces_of_other_sockets_stay_away", |pair| {
            let ours = Joins::open(pair.far.index, PORT, &[group(1)]).expect("joined");
            let others_group = Joins::open(pair.far.index, PORT, &[group(2)]).expect("joined");
            // The same group on an interface of its own, as a second daemon may join it.
            ip("link add near2 type veth peer name far2");
            ip("link set near2 up");
            ip("link set far2 up");
            let far2 = crate::net::interface::Interface::by_name("far2").expect("it was just made");
            let others_interface = Joins::open(far2.index, PORT, &[group(1)]).expect("joined");
            let publisher = publisher();
            publish(&publisher, &pair, group(1));
            publish(&publisher, &pair, group(2));
            let arrived = |joins: &Joins| drain(joins.fds()).into_iter().map(|one| one.1).collect::<Vec<_>>();
            assert_eq!(arrived(&ours), [group(1)]);
            assert_eq!(arrived(&others_group), [group(2)]);
            assert_eq!(arrived(&others_interface), [] as [Ipv6Addr; 0]);
        });
    }

    #[test]
    fn a_socket_without_room_names_the_sysctl() {
        const NAME: &str = "a_socket_without_room_names_the_sysctl";
        in_namespace(NAME, |pair| {
            // One setting a namespace since Linux 6.8; before, a namespace does not show it.
            if fs::write("/proc/sys/net/core/optmem_max", "16").is_err() {
                println!("SKIP {NAME}: needs a kernel with net.core.optmem_max a namespace");
                return;
            }
            let error = Joins::open(pair.far.index, PORT, &[group(1), group(2)]).expect_err("no room");
            assert_eq!(
                error.to_string(),
                "joined 0 of 2 groups on interface far: the kernel has no room for another join in a fresh socket; raise sysctl \
                 net.core.optmem_max (now 16 bytes)"
            );
            // Room for one or two: each socket takes those, and no group is lost.
            fs::write("/proc/sys/net/core/optmem_max", "100").expect("own namespace");
            let groups: Vec<_> = (0..10).map(group).collect();
            let joins = Joins::open(pair.far.index, PORT, &groups).expect("joined");
            assert!(joins.fds().len() >= 5, "{}", joins.fds().len());
            let publisher = publisher();
            groups.iter().for_each(|to| publish(&publisher, &pair, *to));
            assert_eq!(drain(joins.fds()).len(), 10);
        });
    }

    #[test]
    fn a_wrong_group_or_interface_is_named() {
        let lo = crate::net::interface::Interface::by_name("lo").expect("lo");
        let error = Joins::open(lo.index, 0, &["fd00::1".parse().expect("an address")]).expect_err("unicast");
        assert!(error.to_string().starts_with("cannot join fd00::1 on interface lo: "), "{error}");
        let error = Joins::open(9_999, 0, &[group(1)]).expect_err("no such interface");
        assert!(error.to_string().starts_with("cannot join ff05::b:1 on interface 9999: "), "{error}");
        let none = Joins::open(lo.index, 0, &[]).expect("nothing to join");
        assert_eq!(none.fds().len(), 1);
    }
}
