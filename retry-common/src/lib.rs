//! What both sides of the kernel boundary know: the bytes, the limits, the counters, the shared memory's layout, and the
//! one truth table. `no_std`, no allocation, no clock, no I/O: everything can be tested on the host.
//!
//! * [`wire`]: datagrams; [`key`], [`group`], [`checksum`], [`crc32c`]: what is computed from them
//! * [`limit`], [`holddown`]: state word and time in, verdict and state word out
//! * [`table`]: where the states of limits stand
//! * [`index`], [`position`], [`abi`]: the frame log's layout; [`framelog`]: its protocol
//! * [`counter`]: every verdict's counter and metric
//! * [`decide`]: what a NACK gets
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod abi;
pub mod checksum;
pub mod counter;
pub mod crc32c;
pub mod decide;
pub mod framelog;
pub mod group;
pub mod holddown;
pub mod index;
pub mod key;
pub mod limit;
pub mod position;
pub mod table;
pub mod wire;
