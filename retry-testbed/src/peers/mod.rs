//! The daemon's peers: hosts and servers that it talks to.
//!
//! [`frames`] makes frames, [`publish`] sends them and notes them in the [`journal`]; [`listener`] receives them, asks
//! for those that it missed ([`answer`]: NACKs and their answers) and compares. [`announce`] reads ADVERTs and sends
//! shard manifests, [`tee`] hands frames to a daemon on its own host, [`redis`] is the shared store.

pub mod announce;
pub mod answer;
pub mod frames;
pub mod journal;
pub mod listener;
pub mod publish;
pub mod redis;
pub mod tee;
