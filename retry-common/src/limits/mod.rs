//! The rate limits of the kernel program and of the daemon: what a state word means ([`TokenBucket`], [`Window`]), and where
//! the state of a key stands ([`table`]).
//!
//! The kernel program charges its tables in `retry-ebpf/src/admit.rs`, the daemon its own in `retry-userspace/src/limits`.

mod arithmetic;
pub mod bytes;
pub mod table;

pub use arithmetic::{Rate, TokenBucket, Window};
pub use bytes::{ByteBudget, ByteLimits};
