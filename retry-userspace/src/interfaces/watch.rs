//! Links, addresses and XDP programs by rtnetlink, and memberships by `/proc/net/igmp6`.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoBridge, InfoData, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, MulticastGroup};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::plan::Seen;
use crate::fabric::Names;
use crate::net::interface::{Address, AddressState, Interface};

/// Between two looks when nothing is heard.
const AUDIT: Duration = Duration::from_secs(1);
/// Changes come in bursts: after the first one, this is waited for the others.
const BURST: Duration = Duration::from_millis(20);

/// Why the kernel did not tell.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WatchError {
    /// No netlink socket.
    #[error("cannot open a netlink socket: {0}")]
    Open(io::Error),
    /// A request failed.
    #[error("the kernel does not list {what}: {source}")]
    List {
        /// What was asked for.
        what: &'static str,
        /// Its answer.
        source: rtnetlink::Error,
    },
    /// The memberships cannot be read.
    #[error("cannot read /proc/net/igmp6: {0}")]
    Memberships(io::Error),
}

type Messages = futures_util::stream::BoxStream<'static, RouteNetlinkMessage>;

/// Hears of changes and looks. One per network namespace, opened in it.
pub(crate) struct Watch {
    requests: Handle,
    messages: Messages,
    tasks: [JoinHandle<()>; 2],
}

impl Watch {
    /// Subscribes to links and IPv6 addresses of this network namespace. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`WatchError::Open`].
    pub(crate) fn open() -> Result<Self, WatchError> {
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv6Ifaddr];
        let (hearing, _, messages) = rtnetlink::new_multicast_connection(&groups).map_err(WatchError::Open)?;
        // Requests go by a socket of their own: their answers are never behind, or lost among, what is told.
        let (asking, requests, _) = rtnetlink::new_connection().map_err(WatchError::Open)?;
        let messages = messages.filter_map(|(message, _)| async move {
            match message.payload {
                NetlinkPayload::InnerMessage(message) => Some(message),
                _ => None,
            }
        });
        Ok(Self { requests, messages: messages.boxed(), tasks: [tokio::spawn(hearing), tokio::spawn(asking)] })
    }

    /// Waits until something has changed that `concerns` us, a second at most. False when nothing is told any more: then
    /// open another one.
    pub(crate) async fn changed(&mut self, concerns: impl Fn(&Change) -> bool) -> bool {
        let audit = Instant::now() + AUDIT;
        loop {
            match tokio::time::timeout_at(audit, self.messages.next()).await {
                Err(_) => return !self.tasks.iter().any(JoinHandle::is_finished),
                Ok(None) => return false,
                Ok(Some(message)) => {
                    if change(&message).is_some_and(|change| concerns(&change)) {
                        break;
                    }
                }
            }
        }
        let burst = Instant::now() + BURST;
        while let Ok(Some(_)) = tokio::time::timeout_at(burst, self.messages.next()).await {}
        true
    }

    /// Links, their IPv6 addresses and programs, and the memberships of the interface named `ingress`.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub(crate) async fn look(&mut self, names: &Names) -> Result<Seen, WatchError> {
        let mut seen = Seen::default();
        let mut peers = Vec::new();
        let list = |what| move |source| WatchError::List { what, source };
        let mut links = self.requests.link().get().execute();
        while let Some(link) = links.try_next().await.map_err(list("links"))? {
            let (interface, program) = interface(&link);
            if let Some(program) = program {
                seen.programs.insert(interface.index, program);
            }
            peers.extend(peer(&link).map(|peer| (interface.index, peer)));
            seen.interfaces.push(interface);
        }
        let mut request = self.requests.address().get();
        request.message_mut().header.family = AddressFamily::Inet6;
        let mut addresses = request.execute();
        while let Some(message) = addresses.try_next().await.map_err(list("addresses"))? {
            let holder = seen.interfaces.iter_mut().find(|interface| interface.index == message.header.index);
            if let (Some(holder), Some(address)) = (holder, address(&message)) {
                holder.addresses.push(address);
            }
        }
        for (index, peer) in peers {
            if let Some(near) = seen.interfaces.iter_mut().find(|near| near.index == index)
                && (names.egress.contains(&near.name)
                    || near.addresses.iter().any(|address| Some(address.ip) == names.nack_addr))
            {
                near.peer_mtu = mtu_of(self.requests.clone(), peer).await;
            }
        }
        // IPv6 may be gone, and the file with it.
        let table = std::fs::read_to_string("/proc/thread-self/net/igmp6").map_err(WatchError::Memberships)?;
        seen.joined = memberships(&table, &names.ingress);
        Ok(seen)
    }
}

/// What a bridge does about multicast memberships.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct BridgeSettings {
    /// Its name.
    pub(crate) name: String,
    /// It forwards groups only where they are joined.
    pub(crate) snooping: bool,
    /// It asks for memberships itself.
    pub(crate) querier: bool,
}

impl Watch {
    /// The bridge that the interface of this name is, or is a port of; `None` where it is neither.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub(crate) async fn bridge_of(&mut self, name: &str) -> Result<Option<BridgeSettings>, WatchError> {
        let mut all = Vec::new();
        let mut links = self.requests.link().get().execute();
        while let Some(link) = links.try_next().await.map_err(|source| WatchError::List { what: "links", source })? {
            all.push(link);
        }
        let own = all.iter().find(|link| interface(link).0.name == name);
        let master = own.and_then(|link| {
            link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::Controller(index) => Some(*index),
                _ => None,
            })
        });
        let master = all.iter().find(|link| Some(link.header.index) == master);
        Ok(own.into_iter().chain(master).find_map(bridge))
    }
}

fn bridge(link: &LinkMessage) -> Option<BridgeSettings> {
    let infos = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    })?;
    let settings = infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Bridge(settings)) => Some(settings),
        _ => None,
    })?;
    let is = |wanted: fn(&InfoBridge) -> Option<bool>| settings.iter().find_map(wanted).unwrap_or(false);
    Some(BridgeSettings {
        name: interface(link).0.name,
        snooping: is(|one| match one {
            InfoBridge::MulticastSnooping(on) => Some(*on),
            _ => None,
        }),
        querier: is(|one| match one {
            InfoBridge::MulticastQuerier(on) => Some(*on),
            _ => None,
        }),
    })
}

/// The MTU of the other end of a veth pair; `None` where we may not look into its network namespace.
async fn mtu_of(requests: Handle, peer: Peer) -> Option<u32> {
    let mut request = requests.link().get().match_index(peer.index);
    request.message_mut().attributes.extend(peer.namespace.map(LinkAttribute::IfNetnsId));
    let mut links = request.execute();
    let link = links.try_next().await.ok()??;
    Some(interface(&link).0.mtu).filter(|mtu| *mtu > 0)
}

/// The other end of a veth pair.
#[derive(Clone, Copy, Debug)]
struct Peer {
    index: u32,
    /// Id of its network namespace in ours; `None` in ours itself.
    namespace: Option<i32>,
}

fn peer(link: &LinkMessage) -> Option<Peer> {
    let is_veth = |info: &LinkInfo| *info == LinkInfo::Kind(InfoKind::Veth);
    let (mut index, mut namespace, mut veth) = (None, None, false);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Link(peer) => index = Some(*peer),
            LinkAttribute::LinkNetNsId(id) => namespace = Some(*id),
            LinkAttribute::LinkInfo(info) => veth = info.iter().any(is_veth),
            _ => {}
        }
    }
    index.filter(|_| veth).map(|index| Peer { index, namespace })
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// What a message is about.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Change {
    /// A link of this name came, went or changed.
    Link(String),
    /// This address came, went or changed.
    Address(Ipv6Addr),
}

fn change(message: &RouteNetlinkMessage) -> Option<Change> {
    match message {
        RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => Some(Change::Link(name(link))),
        RouteNetlinkMessage::NewAddress(message) | RouteNetlinkMessage::DelAddress(message) => {
            address(message).map(|address| Change::Address(address.ip))
        }
        _ => None,
    }
}

fn name(link: &LinkMessage) -> String {
    let of = |attribute: &LinkAttribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    };
    link.attributes.iter().find_map(of).unwrap_or_default()
}

/// A link, and the id of the XDP program on it.
fn interface(link: &LinkMessage) -> (Interface, Option<u32>) {
    let flags = link.header.flags;
    let mut found = Interface {
        name: String::new(),
        index: link.header.index,
        mac: None,
        mtu: 0,
        peer_mtu: None,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        loopback: link.header.link_layer_type == LinkLayerType::Loopback,
        multicast: flags.contains(LinkFlags::Multicast),
        addresses: Vec::new(),
    };
    let mut program = None;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => found.mtu = *mtu,
            LinkAttribute::Address(bytes) => {
                found.mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().filter(|mac| *mac != [0; 6]);
            }
            LinkAttribute::Xdp(xdp) => {
                program = xdp.iter().find_map(|one| match one {
                    LinkXdp::ProgId(id) => Some(*id),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    (found, program)
}

fn address(message: &AddressMessage) -> Option<Address> {
    let mut flags = u32::from(message.header.flags.bits());
    let mut ip = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(IpAddr::V6(address)) => ip = ip.or(Some(*address)),
            // On a link with a peer this is ours.
            AddressAttribute::Local(IpAddr::V6(address)) => ip = Some(*address),
            AddressAttribute::Flags(all) => flags = all.bits(),
            _ => {}
        }
    }
    ip.map(|ip| Address { ip, state: AddressState::of_flags(flags) })
}

/// Groups that an interface has joined, by the lines of igmp6: index, name, group, users, flags, timer.
fn memberships(table: &str, interface: &str) -> BTreeSet<Ipv6Addr> {
    let of = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let is_ours = fields.nth(1)? == interface;
        let group = u128::from_str_radix(fields.next()?, 16).ok()?;
        is_ours.then_some(Ipv6Addr::from_bits(group))
    };
    table.lines().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::ingress::joins::Joins;
    use crate::net::interface;
    use crate::net::testing::{SOON, in_namespace, ip};

    #[test]
    fn memberships_are_read_from_igmp6() {
        let table = "1    lo              ff0200000000000000000000000000fb     1 0000000C 0\n\
                     7    eth0            ff050000000000000000000000b00000     1 00000004 0\n\
                     7    eth0            garbage     1 00000004 0\n7\n\n\
                     8    eth1            ff02000000000000000000000000000001     1 0000000C 0\n";
        assert_eq!(memberships(table, "eth0"), BTreeSet::from(["ff05::b0:0".parse().expect("an address")]));
        assert_eq!(memberships(table, "eth2"), BTreeSet::new());
    }

    /// In a namespace, on a runtime of the test's thread alone: sockets are of the thread's namespace.
    fn with_watch(name: &'static str, test: impl AsyncFnOnce(crate::net::testing::Pair, Watch) + Send + 'static) {
        in_namespace(name, move |pair| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async { test(pair, Watch::open().expect("netlink")).await });
        });
    }

    #[test]
    fn netlink_shows_what_the_system_calls_show() {
        with_watch("netlink_shows_what_the_system_calls_show", async |pair, mut watch| {
            ip(&format!("link set {} mtu 1400 address 02:00:00:00:00:07", pair.near.name));
            ip(&format!("addr add fd01::77/64 dev {} nodad preferred_lft 0", pair.near.name));
            let group = "ff05::b:1".parse().expect("an address");
            let joins = Joins::open(pair.far.index, 9_001, &[group]).expect("joined");
            let names = Names { ingress: pair.far.name.clone(), ..Names::default() };
            let seen = watch.look(&names).await.expect("a look");
            assert_eq!(seen.interfaces, interface::list().expect("a list"));
            assert!(seen.joined.contains(&group), "{:?}", seen.joined);
            assert_eq!(seen.programs, BTreeMap::new());
            drop(joins);
            let seen = watch.look(&names).await.expect("a look");
            assert!(!seen.joined.contains(&group), "{:?}", seen.joined);
        });
    }

    #[test]
    fn the_mtu_of_a_veth_peer_is_seen() {
        with_watch("the_mtu_of_a_veth_peer_is_seen", async |pair, mut watch| {
            ip(&format!("link set {} mtu 1400", pair.far.name));
            let names =
                Names { ingress: pair.far.name.clone(), egress: vec![pair.near.name.clone()], ..Names::default() };
            let seen = watch.look(&names).await.expect("a look");
            let near = Interface::among(&seen.interfaces, &pair.near.name).expect("it is there");
            assert_eq!((near.mtu, near.peer_mtu, near.reach()), (1_500, Some(1_400), 1_400));
            // One that nothing leaves by is not asked for.
            let far = Interface::among(&seen.interfaces, &pair.far.name).expect("it is there");
            assert_eq!((far.peer_mtu, far.reach()), (None, 1_400));
        });
    }

    #[test]
    fn changes_are_told_and_others_are_not() {
        with_watch("changes_are_told_and_others_are_not", async |pair, mut watch| {
            let near = pair.near.name.clone();
            let ours = move |change: &Change| *change == Change::Link(near.clone());
            // What was told of the start.
            while tokio::time::timeout(Duration::from_millis(100), watch.changed(&ours)).await.is_ok() {}
            ip(&format!("link set {} mtu 1400", pair.far.name));
            let start = Instant::now();
            assert!(watch.changed(&ours).await);
            assert!(start.elapsed() >= AUDIT, "an audit, for nothing of ours changed");
            ip(&format!("link set {} mtu 1400", pair.near.name));
            let told = tokio::time::timeout(SOON, watch.changed(&ours)).await.expect("told");
            assert!(told);
            let lost: Ipv6Addr = "fd01::1".parse().expect("an address");
            ip(&format!("addr del {lost}/64 dev {}", pair.near.name));
            assert!(watch.changed(|change| *change == Change::Address(lost)).await);
        });
    }
}
