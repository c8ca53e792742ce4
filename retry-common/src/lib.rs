//! What both sides of the kernel boundary know: the bytes, the limits, the counters, the shared memory's layout, and the
//! one truth table. `no_std`, no allocation, no clock, no I/O: everything can be tested on the host.
//!
//! * [`wire`]: datagrams; [`key`], [`group`], [`checksum`], [`crc32c`]: what is computed from them
//! * [`limits`]: a state word and a time in, a verdict and a state word out; where these words stand
//! * [`holddown`]: the same for multicast repairs of one frame
//! * [`index`], [`position`], [`abi`]: the frame log's layout; [`framelog`]: its protocol
//! * [`counter`]: every verdict's counter and metric; [`latency`]: how long it took; [`talkers`]: which NACKs are told of
//! * [`acl`]: whose NACK is looked at; [`decide`]: what it gets
//!
//! A listener asks for frame 7 of a flow, and reads the answer:
//!
//! ```
//! use retry_common::key::FrameKey;
//! use retry_common::wire::answer::{AckFlags, Answer};
//! use retry_common::wire::nack::{NACK_LEN, Nack};
//!
//! let nack = Nack { flags: 0, key: FrameKey::new(0x1122_3344_5566_7788, 7), subtree_id: [0; 32] };
//! let datagram = nack.to_bytes();
//! assert_eq!(datagram.len(), NACK_LEN);
//! assert_eq!(Nack::parse(&datagram)?, nack);
//!
//! // The endpoint multicasts the frame and says so.
//! let ack = Answer::Ack { flags: AckFlags::MULTICAST, seq_num: 7 };
//! assert_eq!(Answer::parse(&ack.to_bytes())?, ack);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod abi;
pub mod acl;
pub mod checksum;
pub mod counter;
pub mod crc32c;
pub mod decide;
pub mod framelog;
pub mod group;
pub mod holddown;
pub mod index;
pub mod key;
pub mod latency;
pub mod limits;
pub mod position;
pub mod replace;
pub mod sources;
pub mod talkers;
pub mod wire;
