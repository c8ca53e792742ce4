//! The network: hosts in namespaces, what is lost between them, and packets as bytes.
//!
//! From the ground up: [`netns`] makes namespaces, [`fabric`] joins hosts in them, [`loss`] loses packets on the way.
//! [`packet`] builds and checks packets, [`capture`] receives and sends them raw, [`batch`] sends many with one call,
//! [`replay`] takes datagrams out of a capture file, and [`forward`] lets this host reach a server in a namespace.

pub mod batch;
pub mod capture;
pub mod fabric;
pub mod forward;
pub mod loss;
pub mod netns;
pub mod packet;
pub mod replay;
