//! Socket addresses and control messages (RFC 3542) as the kernel lays them out, read and written as plain bytes.

use std::net::{Ipv6Addr, SocketAddrV6};

/// Bytes of a control message's header; its data starts here.
const HEADER: usize = size_of::<libc::cmsghdr>();
/// Control messages start at multiples of a machine word.
const ALIGN: usize = size_of::<usize>();
/// Bytes of `struct in6_pktinfo`: an address and an interface index.
pub(super) const PKTINFO: usize = 20;

/// Bytes of a socket address in the kernel's form.
#[expect(clippy::cast_possible_truncation, reason = "28")]
pub(super) const ADDRESS: libc::socklen_t = size_of::<libc::sockaddr_in6>() as libc::socklen_t;

/// Room that a control message with `data` bytes takes, padding included.
pub(super) const fn space(data: usize) -> usize {
    HEADER + data.next_multiple_of(ALIGN)
}

/// A length of control messages in the type that the C library gives it: glibc's has 64 bits, musl's 32 and padding.
pub(super) fn length<T: TryFrom<usize> + Default>(bytes: usize) -> T {
    // No buffer of control messages comes near 4 GiB.
    T::try_from(bytes).unwrap_or_default()
}

/// What [`length`] has made.
pub(super) fn length_of(length: impl TryInto<usize>) -> usize {
    length.try_into().unwrap_or(usize::MAX)
}

/// The kernel's form of `address`.
pub(super) fn to_raw(address: SocketAddrV6) -> libc::sockaddr_in6 {
    libc::sockaddr_in6 {
        #[expect(clippy::cast_possible_truncation, reason = "AF_INET6 is 10")]
        sin6_family: libc::AF_INET6 as libc::sa_family_t,
        sin6_port: address.port().to_be(),
        sin6_flowinfo: 0,
        sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
        sin6_scope_id: address.scope_id(),
    }
}

/// The kernel's form of `address`, in room for one of any family.
pub(super) fn to_storage(address: SocketAddrV6) -> libc::sockaddr_storage {
    // SAFETY: sockaddr_storage is integers only, for which zero is a value.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    // SAFETY: sockaddr_storage is made to be larger than an address of any family, and aligned for it.
    unsafe { (&raw mut storage).cast::<libc::sockaddr_in6>().write(to_raw(address)) };
    storage
}

/// The address in the kernel's form.
pub(super) fn from_raw(raw: &libc::sockaddr_in6) -> SocketAddrV6 {
    SocketAddrV6::new(Ipv6Addr::from(raw.sin6_addr.s6_addr), u16::from_be(raw.sin6_port), 0, raw.sin6_scope_id)
}

/// One control message: level, type and data.
pub(super) struct Control<'a> {
    pub(super) level: i32,
    pub(super) kind: i32,
    pub(super) data: &'a [u8],
}

/// The control messages in `bytes`; a message that does not fit ends them.
pub(super) fn controls(mut bytes: &[u8]) -> impl Iterator<Item = Control<'_>> {
    std::iter::from_fn(move || {
        let (length, rest) = bytes.split_first_chunk::<{ size_of::<usize>() }>()?;
        let (level, rest) = rest.split_first_chunk::<4>()?;
        let (kind, _) = rest.split_first_chunk::<4>()?;
        let length = usize::from_ne_bytes(*length);
        let data = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.checked_next_multiple_of(ALIGN)?..).unwrap_or_default();
        Some(Control { level: i32::from_ne_bytes(*level), kind: i32::from_ne_bytes(*kind), data })
    })
}

/// Address and interface index of an `IPV6_PKTINFO` message.
pub(super) fn pktinfo(data: &[u8]) -> Option<(Ipv6Addr, u32)> {
    let (address, rest) = data.split_first_chunk::<16>()?;
    let (index, _) = rest.split_first_chunk::<4>()?;
    Some((Ipv6Addr::from(*address), u32::from_ne_bytes(*index)))
}

/// Control messages of a datagram to send: which address and interface it leaves by, and its hop limit.
pub(super) const EGRESS: usize = space(PKTINFO) + space(4);

/// Writes `IPV6_PKTINFO` and `IPV6_HOPLIMIT`.
pub(super) fn egress(source: Ipv6Addr, interface: u32, hop_limit: u8) -> [u8; EGRESS] {
    let mut info = [0; PKTINFO];
    info[..16].copy_from_slice(&source.octets());
    info[16..].copy_from_slice(&interface.to_ne_bytes());
    let mut out = [0; EGRESS];
    let (first, second) = out.split_at_mut(space(PKTINFO));
    write(first, libc::IPV6_PKTINFO, &info);
    write(second, libc::IPV6_HOPLIMIT, &i32::from(hop_limit).to_ne_bytes());
    out
}

fn write(out: &mut [u8], kind: i32, data: &[u8]) {
    const LENGTH: usize = size_of::<usize>();
    out[..LENGTH].copy_from_slice(&(HEADER + data.len()).to_ne_bytes());
    out[LENGTH..LENGTH + 4].copy_from_slice(&libc::IPPROTO_IPV6.to_ne_bytes());
    out[LENGTH + 4..HEADER].copy_from_slice(&kind.to_ne_bytes());
    out[HEADER..HEADER + data.len()].copy_from_slice(data);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let source: Ipv6Addr = "fd10::20".parse().expect("an address");
        let bytes = egress(source, 7, 3);
        let read: Vec<_> = controls(&bytes).collect();
        assert_eq!(read.len(), 2);
        assert_eq!((read[0].level, read[0].kind), (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO));
        assert_eq!(pktinfo(read[0].data), Some((source, 7)));
        assert_eq!((read[1].level, read[1].kind), (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT));
        assert_eq!(read[1].data, 3_i32.to_ne_bytes());
    }

    #[test]
    fn a_message_that_does_not_fit_ends_the_list() {
        let bytes = egress(Ipv6Addr::LOCALHOST, 1, 1);
        for cut in 0..bytes.len() {
            assert!(controls(&bytes[..cut]).count() < 2 || cut >= space(PKTINFO) + HEADER + 4);
        }
        let mut huge = bytes;
        huge[..8].copy_from_slice(&usize::MAX.to_ne_bytes());
        assert_eq!(controls(&huge).count(), 0);
        huge[..8].copy_from_slice(&0_usize.to_ne_bytes());
        assert_eq!(controls(&huge).count(), 0);
    }

    #[test]
    fn an_address_survives_the_kernels_form() {
        let address: SocketAddrV6 = "[fe80::1%3]:9300".parse().expect("an address");
        assert_eq!(from_raw(&to_raw(address)), address);
    }
}
