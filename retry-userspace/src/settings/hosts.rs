//! Hosts and addresses as operators write them: names, IPv6 literals, `host:port`, URLs, comma lists of them.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};

use super::error::shown;
use super::values::parts;

/// A host by address or by name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Host {
    /// An IPv6 unicast address.
    Address(Ipv6Addr),
    /// A DNS name.
    Name(String),
}

/// Another program's socket.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct HostPort {
    /// DNS name or address, without brackets.
    pub host: String,
    /// Port, never 0.
    pub port: u16,
}

/// One Redis server; several are a Redis Cluster.
#[derive(Clone, Eq, PartialEq)]
pub struct RedisNode {
    /// `redis://…` or, with TLS, `rediss://…`; may hold a password.
    pub url: String,
}

impl fmt::Debug for RedisNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RedisNode").field(&shown(&self.url)).finish()
    }
}

/// An IPv6 address that can be a unicast source, or nothing.
pub(super) fn optional_address(text: &str) -> Result<Option<Ipv6Addr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    unicast(text).map(Some).ok_or_else(|| "an IPv6 unicast address such as fd10::20 is accepted".to_owned())
}

/// `:9400`, `[::1]:9400`, `127.0.0.1:9400`, `localhost:9400`; an empty host is every address, port 0 a free port. A name is
/// looked up.
pub(super) fn listen_address(text: &str) -> Result<SocketAddr, String> {
    listen_address_by(text, |name, port| (name, port).to_socket_addrs().map(Iterator::collect))
}

/// As [`listen_address`]; `look_up` knows the addresses of a name.
fn listen_address_by(
    text: &str,
    look_up: impl Fn(&str, u16) -> io::Result<Vec<SocketAddr>>,
) -> Result<SocketAddr, String> {
    const ACCEPTED: &str = ":port, address:port or name:port is accepted, IPv6 addresses in brackets";
    let whole = if text.starts_with(':') { format!("[::]{text}") } else { text.to_owned() };
    if let Ok(address) = whole.parse() {
        return Ok(address);
    }
    let named = text.split_once(':').filter(|(name, _)| is_name(name));
    let (name, port) = named.and_then(|(name, port)| Some((name, port.parse().ok()?))).ok_or(ACCEPTED)?;
    let found = look_up(name, port).map_err(|error| format!("{ACCEPTED}; {name} is not found: {error}"))?;
    // Go's Listen takes an IPv4 address where a name has one.
    let first = found.iter().find(|address| address.is_ipv4()).or(found.first());
    first.copied().ok_or_else(|| format!("{ACCEPTED}; {name} has no address"))
}

/// A loopback address and port, or nothing.
pub(super) fn loopback_address(text: &str) -> Result<Option<SocketAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() && address.port() != 0 => Ok(Some(address)),
        _ => Err("a loopback address and port such as [::1]:9002 is accepted".to_owned()),
    }
}

/// IPv6 literals and DNS names, comma separated; none is accepted.
pub(super) fn hosts(text: &str) -> Result<Vec<Host>, String> {
    list(text, |one| unicast(one).map(Host::Address).or_else(|| is_name(one).then(|| Host::Name(one.to_owned()))))
        .ok_or_else(|| "IPv6 unicast addresses and DNS names, comma separated, are accepted".to_owned())
}

/// `host:port`, comma separated; none is accepted.
pub(super) fn host_ports(text: &str) -> Result<Vec<HostPort>, String> {
    list(text, |one| host_port(one, None))
        .ok_or_else(|| "host:port, comma separated, IPv6 addresses in brackets, is accepted".to_owned())
}

/// `host:port`, `redis://…`, `rediss://…`, or a comma list of them; none is accepted.
pub(super) fn redis_nodes(text: &str) -> Result<Vec<RedisNode>, String> {
    // Its hosts stand between commas inside one URL.
    let sentinels = sentinels(text);
    sentinels.map(|url| vec![url]).or_else(|| list(text, redis_node)).ok_or_else(|| {
        "host:port, redis://host or rediss://host, a comma list of a cluster, or redis+sentinel://host:port,…/name is \
         accepted"
            .to_owned()
    })
}

/// `host:port`, `http://host:port` or `https://host:port`, or nothing.
pub(super) fn collector(text: &str) -> Result<Option<String>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")).unwrap_or(text);
    match host_port(rest.strip_suffix('/').unwrap_or(rest), None) {
        Some(_) => Ok(Some(text.to_owned())),
        None => Err("host:port, http://host:port or https://host:port is accepted".to_owned()),
    }
}

/// Every part of a comma list, `None` when one is not accepted; an empty text is an empty list.
fn list<T>(text: &str, parse: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
    parts(text).map(parse).collect()
}

fn unicast(text: &str) -> Option<Ipv6Addr> {
    text.parse::<Ipv6Addr>().ok().filter(|address| !address.is_multicast() && !address.is_unspecified())
}

/// A DNS name (RFC 1123 section 2.1, and the underscore that service names have); never something like `10.0.0.1`.
fn is_name(text: &str) -> bool {
    let name = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_')
    };
    let last_is_word = name.rsplit('.').next().is_some_and(|last| last.bytes().any(|c| !c.is_ascii_digit()));
    name.len() <= 253 && last_is_word && name.split('.').all(label)
}

fn host_port(text: &str, default_port: Option<u16>) -> Option<HostPort> {
    let (host, port) = match text.strip_prefix('[') {
        Some(bracketed) => {
            let (address, rest) = bracketed.split_once(']')?;
            // A link-local address names its interface behind a percent sign.
            let (bare, zone) = address.split_once('%').unwrap_or((address, "1"));
            if bare.parse::<Ipv6Addr>().is_err() || zone.is_empty() {
                return None;
            }
            (address, rest.strip_prefix(':'))
        }
        None => {
            let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
            let is_v4 = host.parse::<IpAddr>().is_ok_and(|address| address.is_ipv4());
            if !is_v4 && !is_name(host) {
                return None;
            }
            (host, port)
        }
    };
    let port = match port {
        Some(port) if port.bytes().all(|c| c.is_ascii_digit()) => port.parse().ok().filter(|port| *port != 0)?,
        Some(_) => return None,
        None => default_port?,
    };
    Some(HostPort { host: host.to_owned(), port })
}

fn redis_node(text: &str) -> Option<RedisNode> {
    const PORT: u16 = 6379;
    let Some((scheme, rest)) = text.split_once("://") else {
        host_port(text, None)?;
        return Some(RedisNode { url: format!("redis://{text}") });
    };
    if scheme != "redis" && scheme != "rediss" {
        return None;
    }
    let place = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
    let (server, database) = place.split_once('/').unwrap_or((place, ""));
    host_port(server, Some(PORT))?;
    database.bytes().all(|c| c.is_ascii_digit()).then(|| RedisNode { url: text.to_owned() })
}

/// `redis+sentinel://[user:password@]host[:port],…/name[/database]`, or `rediss+sentinel://…` with TLS.
fn sentinels(text: &str) -> Option<RedisNode> {
    const PORT: u16 = 26379;
    let rest = text.strip_prefix("redis+sentinel://").or_else(|| text.strip_prefix("rediss+sentinel://"))?;
    let place = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
    let (hosts, path) = place.split_once('/')?;
    let (name, database) = path.split_once('/').unwrap_or((path, ""));
    let hosts_are = hosts.split(',').all(|host| host_port(host.trim(), Some(PORT)).is_some());
    let accepted = hosts_are
        && !name.is_empty()
        && name.bytes().all(|c| c.is_ascii_graphic() && c != b',')
        && database.bytes().all(|c| c.is_ascii_digit());
    accepted.then(|| RedisNode { url: text.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn listen_addresses() {
        for (text, address) in
            [(":9400", "[::]:9400"), ("127.0.0.1:1", "127.0.0.1:1"), ("[::1]:9400", "[::1]:9400"), (":0", "[::]:0")]
        {
            assert_eq!(listen_address(text), Ok(address.parse().unwrap()), "{text}");
        }
        for text in
            ["", ":", "9400", "::1:9400", ":65536", "[::1]", ":-1", "localhost", "localhost:", "a:65536", "a b:1"]
        {
            assert!(listen_address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_listen_address_may_be_a_name() {
        let localhost = listen_address("localhost:9400").expect("every host knows it");
        assert!(localhost.ip().is_loopback() && localhost.port() == 9400);
        let both = |_: &str, port| {
            let six = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
            Ok(vec![six, SocketAddr::from(([127, 0, 0, 1], port))])
        };
        assert_eq!(listen_address_by("a.example:1", both), Ok("127.0.0.1:1".parse().unwrap()));
        let six = |_: &str, port| Ok(vec![SocketAddr::from((Ipv6Addr::LOCALHOST, port))]);
        assert_eq!(listen_address_by("a.example:1", six), Ok("[::1]:1".parse().unwrap()));
        let accepted = ":port, address:port or name:port is accepted, IPv6 addresses in brackets";
        let nowhere = |_: &str, _| Err(io::Error::other("no such name"));
        assert_eq!(listen_address_by("a:1", nowhere), Err(format!("{accepted}; a is not found: no such name")));
        assert_eq!(listen_address_by("a:1", |_, _| Ok(Vec::new())), Err(format!("{accepted}; a has no address")));
    }

    #[test]
    fn a_source_is_unicast() {
        assert_eq!(optional_address(""), Ok(None));
        assert_eq!(optional_address("fd10::20"), Ok(Some("fd10::20".parse().unwrap())));
        for text in ["::", "ff05::1", "10.0.0.1", "fd10::20/64", "[fd10::20]", "host", "fe80::1%eth0"] {
            assert!(optional_address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_tee_is_loopback() {
        assert_eq!(loopback_address(""), Ok(None));
        for text in ["[::1]:9001", "127.0.0.1:9001"] {
            assert_eq!(loopback_address(text), Ok(Some(text.parse().unwrap())));
        }
        for text in [":9001", "[::]:9001", "[fd10::1]:9001", "[::1]:0", "[::1]", "10.0.0.1:9001"] {
            assert!(loopback_address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn hosts_are_addresses_or_names() {
        let name = |name: &str| Host::Name(name.to_owned());
        assert_eq!(hosts(""), Ok(vec![]));
        assert_eq!(
            hosts("fd10::1, pub-1.example.org"),
            Ok(vec![Host::Address("fd10::1".parse().unwrap()), name("pub-1.example.org")])
        );
        assert_eq!(hosts("_a.b."), Ok(vec![name("_a.b.")]));
        assert_eq!(hosts("fd10::1,"), Ok(vec![Host::Address("fd10::1".parse().unwrap())]));
        assert_eq!(hosts(" ,"), Ok(vec![]));
        for text in ["ff05::1", "10.0.0.1", "-a", "a-", "a..b", "a b", "a:1"] {
            assert!(hosts(text).is_err(), "{text}");
        }
        assert!(hosts(&"a".repeat(64)).is_err());
    }

    #[test]
    fn a_peer_has_a_host_and_a_port() {
        let peer = |host: &str, port| HostPort { host: host.to_owned(), port };
        assert_eq!(
            host_ports("a.b:9300,[fd10::1]:1,10.0.0.1:2, [fe80::1%eth0]:3"),
            Ok(vec![peer("a.b", 9300), peer("fd10::1", 1), peer("10.0.0.1", 2), peer("fe80::1%eth0", 3)])
        );
        for text in
            ["a", "a:", "a:0", "a:+1", "a:65536", ":1", "fd10::1:1", "[fd10::1]", "[a]:1", "[fe80::1%]:1", "a:1:2"]
        {
            assert!(host_ports(text).is_err(), "{text}");
        }
    }

    #[test]
    fn redis_has_four_forms() {
        let urls = |text| redis_nodes(text).map(|nodes| nodes.into_iter().map(|node| node.url).collect::<Vec<_>>());
        assert_eq!(urls(""), Ok(vec![]));
        assert_eq!(urls("r:6379"), Ok(vec!["redis://r:6379".to_owned()]));
        for text in ["redis://r", "rediss://r:1/0", "redis://me:p/w@[::1]:1"] {
            assert_eq!(urls(text), Ok(vec![text.to_owned()]));
        }
        assert_eq!(urls("a:1,b:2"), Ok(vec!["redis://a:1".to_owned(), "redis://b:2".to_owned()]));
        for text in ["r", "http://r:1", "redis://", "redis://r/x"] {
            assert!(redis_nodes(text).is_err(), "{text}");
        }
        let node = redis_nodes("redis://me:secret@r").expect("one node");
        assert!(!format!("{node:?}").contains("secret"));
    }

    #[test]
    fn sentinels_share_one_url() {
        for text in [
            "redis+sentinel://s/frames",
            "redis+sentinel://a:1,[fd10::1]:2,10.0.0.3/frames/4",
            "rediss+sentinel://me:p,w/@a:1,b:2/frames",
        ] {
            assert_eq!(redis_nodes(text), Ok(vec![RedisNode { url: text.to_owned() }]), "{text}");
        }
        for text in [
            "redis+sentinel://a:1",
            "redis+sentinel://a:1/",
            "redis+sentinel:///frames",
            "redis+sentinel://a:1,/frames",
            "redis+sentinel://a:0/frames",
            "redis+sentinel://a:1/frames/x",
            "sentinel://a:1/frames",
            "redis+sentinel://a:1/frames,redis://b:1",
        ] {
            assert!(redis_nodes(text).is_err(), "{text}");
        }
        let node = redis_nodes("redis+sentinel://me:sec,ret@a:1,b:2/frames").expect("one URL");
        assert_eq!(format!("{node:?}"), "[RedisNode(\"redis+sentinel://***@a:1,b:2/frames\")]");
    }

    #[test]
    fn collectors() {
        for text in ["c:4317", "http://c:4317", "https://c:4317/", "http://[::1]:4317"] {
            assert_eq!(collector(text), Ok(Some(text.to_owned())));
        }
        for text in ["c", "ftp://c:1", "http://c", "c:4317/v1"] {
            assert!(collector(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,30}") {
            let nowhere = |_: &str, _| Ok(Vec::new());
            let _ = (optional_address(&text), listen_address_by(&text, nowhere), loopback_address(&text), hosts(&text));
            let _ = (host_ports(&text), redis_nodes(&text), collector(&text));
        }

        #[test]
        fn address_lists_are_read_back(addresses in prop::collection::vec(1u128.., 1..20)) {
            let all: Vec<Ipv6Addr> = addresses.into_iter().map(Ipv6Addr::from).filter(|a| !a.is_multicast()).collect();
            let text = all.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            prop_assert_eq!(hosts(&text), Ok(all.into_iter().map(Host::Address).collect::<Vec<_>>()));
        }
    }
}
