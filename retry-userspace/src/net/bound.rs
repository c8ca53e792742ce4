//! Which UDP sockets of this network namespace are bound where, and whether they are ours: from `/proc/net/udp6`.

use std::collections::HashSet;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::{fs, io};

/// A bound socket that is not ours.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Bound {
    /// Its address: unspecified for a socket of every address.
    pub address: Ipv6Addr,
    /// Its port.
    pub port: u16,
    /// The user that opened it.
    pub user: u32,
    /// Its inode, as `ss -uapne` shows it beside the process.
    pub inode: u64,
}

/// The sockets on `port` that other processes hold.
///
/// # Errors
/// `/proc` cannot be read.
pub(crate) fn by_others(port: u16) -> io::Result<Vec<Bound>> {
    // Of this thread: in tests, threads have namespaces of their own.
    let table = fs::read_to_string("/proc/thread-self/net/udp6")?;
    let mut bound: Vec<Bound> = sockets(&table).filter(|bound| bound.port == port).collect();
    if bound.is_empty() {
        return Ok(bound);
    }
    let mut ours = HashSet::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        // A descriptor may close while the directory is read.
        if let Ok(link) = fs::read_link(entry?.path())
            && let Some(inode) = link.to_str().and_then(|link| link.strip_prefix("socket:["))
        {
            ours.extend(inode.trim_end_matches(']').parse::<u64>());
        }
    }
    bound.retain(|bound| !ours.contains(&bound.inode));
    Ok(bound)
}

/// A socket of another process that is bound to exactly this address and port: it may get what is sent there.
///
/// # Errors
/// As [`by_others`].
pub(crate) fn rival(address: SocketAddrV6) -> io::Result<Option<Bound>> {
    Ok(by_others(address.port())?.into_iter().find(|bound| bound.address == *address.ip()))
}

/// The sockets in a table as `/proc/net/udp6` has it.
fn sockets(table: &str) -> impl Iterator<Item = Bound> + '_ {
    table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_whitespace();
        let (address, port) = fields.nth(1)?.rsplit_once(':')?;
        let user = fields.nth(5)?.parse().ok()?;
        let inode = fields.nth(1)?.parse().ok()?;
        Some(Bound { address: address_of(address)?, port: u16::from_str_radix(port, 16).ok()?, user, inode })
    })
}

/// Four words of 32 bits, each as the host has it.
fn address_of(text: &str) -> Option<Ipv6Addr> {
    let mut octets = [0; 16];
    if text.len() != 32 {
        return None;
    }
    for (at, word) in octets.chunks_exact_mut(4).enumerate() {
        let word_text = text.get(at * 8..at * 8 + 8)?;
        word.copy_from_slice(&u32::from_str_radix(word_text, 16).ok()?.to_ne_bytes());
    }
    Some(Ipv6Addr::from(octets))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_read() {
        let words = [[0xfe, 0x80, 0, 0], [0; 4], [0x54, 0x50, 0, 0xff], [0xfe, 0xc3, 0xb2, 0xa1]];
        let link_local: String = words.map(|word| format!("{:08X}", u32::from_ne_bytes(word))).concat();
        let table = format!(
            "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
 1178: 00000000000000000000000000000000:2329 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 56789 2 0000000000000000 0
 1179: {link_local}:2454 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000  1000        0 123 2 0000000000000000 0
 1180: B00C05FF0000000000000000 00
"
        );
        let found: Vec<_> = sockets(&table).collect();
        let any = Bound { address: Ipv6Addr::UNSPECIFIED, port: 9_001, user: 0, inode: 56_789 };
        let one = Bound {
            address: "fe80::5450:ff:fec3:b2a1".parse().expect("an address"),
            port: 9_300,
            user: 1_000,
            inode: 123,
        };
        assert_eq!(found, [any, one]);
        assert_eq!(sockets("").count(), 0);
    }

    #[test]
    fn our_own_socket_is_not_a_rival() {
        let socket = std::net::UdpSocket::bind("[::1]:0").expect("a port");
        let port = socket.local_addr().expect("an address").port();
        assert_eq!(by_others(port).expect("readable"), []);
        let table = fs::read_to_string("/proc/thread-self/net/udp6").expect("readable");
        let found: Vec<_> = sockets(&table).filter(|bound| bound.port == port).collect();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].address, found[0].user), (Ipv6Addr::LOCALHOST, nix::unistd::geteuid().as_raw()));
    }
}
