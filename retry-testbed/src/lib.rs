//! What the tests, the demo and the bench stand on. Development only.
//!
//! From the ground up: [`netns`] makes namespaces, [`fabric`] joins hosts in them, [`loss`] loses packets on the way.
//! [`packet`] builds and checks packets, [`capture`] reads and writes them raw, [`batch`]
//! many at once. [`frames`] makes frames, [`publish`] sends
//! them and notes them in the [`journal`], [`listener`] receives them, asks for what it missed ([`answer`]) and compares.
//! [`announce`] reads ADVERTs and sends shard manifests, [`tee`] hands frames to a daemon on its own host.
//! [`daemon`] runs the real program and reads its numbers ([`http`]); [`testrun`] runs one packet through an XDP program,
//! [`xdp_fixture`] is ours with a frame log, [`expect`] what a NACK gets from it; [`replay`] takes datagrams out of a capture.
//! [`suppression`] lets hundreds of listeners miss the same frames and counts the copies of their repairs.

pub mod announce;
pub mod answer;
pub mod batch;
pub mod capture;
pub mod daemon;
pub mod expect;
pub mod fabric;
pub mod frames;
pub mod http;
pub mod journal;
pub mod listener;
pub mod loss;
pub mod netns;
pub mod packet;
pub mod publish;
pub mod redis;
pub mod replay;
pub mod suppression;
pub mod tee;
pub mod testrun;
pub mod xdp_fixture;
