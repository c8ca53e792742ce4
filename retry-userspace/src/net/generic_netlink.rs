//! One question to a family of generic netlink (Documentation/userspace-api/netlink): what rtnetlink does not tell of a device.

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

/// The family that tells the numbers of all others (linux/genetlink.h).
const CONTROL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
/// Kind of message that holds an error number.
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
/// An attribute that holds attributes.
pub(crate) const NESTED: u16 = 0x8000;
/// The bits of an attribute's kind that are its number.
const KIND: u16 = 0x3fff;
/// Both headers of a message.
const HEADERS: usize = 16 + 4;
/// No answer that is asked for here is longer.
const LONGEST: usize = 1 << 16;

/// Asks a family, by its name, and returns the attributes of its answer.
///
/// # Errors
/// ENOENT: the kernel has no such family; EOPNOTSUPP: the device does not tell; what a socket returns.
pub(crate) fn ask(family: &str, command: u8, attributes: &[u8]) -> io::Result<Vec<u8>> {
    let mut name = family.as_bytes().to_vec();
    name.push(0);
    let found = exchange(CONTROL, CTRL_CMD_GETFAMILY, &attribute(CTRL_ATTR_FAMILY_NAME, &name))?;
    let id = find(&found, CTRL_ATTR_FAMILY_ID).and_then(|bytes| bytes.first_chunk().copied()).map(u16::from_ne_bytes);
    exchange(id.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?, command, attributes)
}

/// An attribute, padded.
pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The attributes in these bytes: number and value.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let ([l0, l1, k0, k1], _) = bytes.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([*l0, *l1]));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((u16::from_ne_bytes([*k0, *k1]) & KIND, value))
    })
}

/// The value of the first attribute of this number.
pub(crate) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

fn exchange(family: u16, command: u8, attributes: &[u8]) -> io::Result<Vec<u8>> {
    let socket =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, Some(SockProtocol::NetlinkGeneric))?;
    // The kernel answers within the call that asks; a lost answer must not hang the caller.
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(1, 0))?;
    let length = u32::try_from(HEADERS + attributes.len()).map_err(io::Error::other)?;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend([family.to_ne_bytes(), NLM_F_REQUEST.to_ne_bytes()].concat());
    // Number of the message, and a sender whose number the kernel fills in.
    message.extend([1_u32.to_ne_bytes(), 0_u32.to_ne_bytes()].concat());
    message.extend([command, 1, 0, 0]);
    message.extend(attributes);
    sendto(socket.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = vec![0; LONGEST];
    let received = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    answer.truncate(received);
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let kind = answer.get(4..).and_then(|rest| rest.first_chunk().copied()).map(u16::from_ne_bytes);
    if kind.ok_or_else(invalid)? == NLMSG_ERROR {
        let code = answer.get(16..).and_then(|rest| rest.first_chunk().copied()).map(i32::from_ne_bytes);
        return Err(io::Error::from_raw_os_error(-code.ok_or_else(invalid)?));
    }
    Ok(answer.get(HEADERS..).ok_or_else(invalid)?.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_are_written() {
        let bytes = [attribute(3, &[1, 2, 3]), attribute(4 | NESTED, &attribute(1, b"x")), attribute(3, &[])].concat();
        let found: Vec<_> = attributes(&bytes).collect();
        assert_eq!(found.len(), 3);
        assert_eq!((found[0], found[2]), ((3, &[1, 2, 3][..]), (3, &[][..])));
        assert_eq!(find(find(&bytes, 4).expect("nested"), 1), Some(&b"x"[..]));
        assert_eq!(find(&bytes, 5), None);
        // Lengths that lead nowhere end the walk.
        for broken in [&[0, 0, 1, 0][..], &[200, 0, 1, 0], &[5, 0, 1], &[]] {
            assert_eq!(attributes(broken).count(), 0, "{broken:?}");
        }
    }

    #[test]
    fn a_family_that_is_not_there_is_told() {
        let error = ask("retry-nothing", 1, &[]).expect_err("no such family");
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    }
}
