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
//!
//! # Example
//!
//! A case of a suite: the daemon on a fabric in namespaces, a frame that a publisher multicasts, and a listener that asks for
//! it.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use retry_common::key::FrameKey;
//! use retry_testbed::daemon::Daemon;
//! use retry_testbed::net::fabric::{Fabric, group};
//! use retry_testbed::peers::{answer::nack, journal::Journal, publish::Publisher};
//! use retry_testbed::scene::{ask, asker, await_count, binary, flags, frame, two_hosts};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let fabric = Fabric::flat(1500)?;
//! let (endpoint, client) = two_hosts(&fabric);
//! let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &[]))?;
//!
//! let key = FrameKey::new(0xfeed, 1);
//! let publisher = Publisher::open(&client.ns, Arc::new(Journal::new()))?;
//! publisher.send(group(0), &frame(key, 300, 1))?;
//! await_count(&daemon, "bre_frames_cached_total", &[], 1);
//!
//! let answers = ask(&asker(client), endpoint.nack_address(), &nack(key), 2);
//! assert_eq!(answers.len(), 2, "the frame and its ACK");
//! # Ok(())
//! # }
//! ```

pub mod daemon;
pub mod net;
pub mod peers;
pub mod scene;
pub mod scheduling;
pub mod xdp;
