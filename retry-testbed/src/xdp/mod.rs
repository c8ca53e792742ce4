//! The kernel program by itself, without the daemon.
//!
//! [`testrun`] runs one packet through an XDP program, [`fixture`] is ours with a frame log and settings, [`expect`]
//! states what a NACK has to get from it.

pub mod expect;
pub mod fixture;
pub mod testrun;
