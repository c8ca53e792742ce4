//! What the test suites, the demo and the bench stand on. Development only.
//!
//! # Where a line belongs
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`net`] | the network itself: namespaces, the fabric that joins hosts, loss, packets built, sent raw, captured and read back |
//! | [`peers`] | what stands on hosts beside the daemon: frames and their publisher, listeners, Redis, beacons and manifests, the tee |
//! | [`daemon`] | the daemon as a process under test: its start and end, and what its HTTP servers tell |
//! | [`xdp`] | the kernel program by itself: one packet through it, its maps, and what a NACK has to get from it |
//! | [`scene`] | a daemon with its peers on a fabric, as more than one suite or the bench sets them up |
//!
//! A module imports those above it in this table, and no other; `xdp` does without `daemon`.
//! The binary adds three directories of its own, one for each verb: `demo/`, `bench/` and `cluster/`. What only one of
//! them needs stays there. What only one suite needs stays in that suite's directory below `tests/`.

pub mod daemon;
pub mod net;
pub mod peers;
pub mod scene;
pub mod xdp;
