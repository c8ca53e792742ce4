//! Sockets and interfaces. This layer moves datagrams and says what happened to each; it decides nothing about them.
//!
//! [`interface`] finds an interface and its addresses, [`generic_netlink`] asks what else the kernel knows of it, [`batch`] receives ([`readiness`] waits on several
//! sockets), [`mld`] reports memberships, [`nack_socket`] sends from the NACK port, by [`multicast`] where a datagram leaves by a chosen interface. [`neighbours`] says which
//! datagrams would wait in the kernel: no send waits. [`bound`] says what other programs have bound. [`options`] sets what the standard
//! library does not reach, and `message` lays out addresses and control messages.

pub(crate) mod batch;
pub(crate) mod bound;
pub(crate) mod generic_netlink;
pub(crate) mod interface;
mod message;
pub(crate) mod mld;
pub(crate) mod multicast;
pub(crate) mod nack_socket;
pub(crate) mod neighbours;
pub(crate) mod options;
pub(crate) mod readiness;
#[cfg(test)]
pub(crate) mod testing;
