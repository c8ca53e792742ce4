//! From the fabric into the frame log.
//!
//! [`listening`] holds the sockets, [`fill`] stores what they receive, [`tee`] what a program on this host hands on. With
//! sources named, [`sources`] decides (purely) which, [`control`] finds out: from DNS, and from the manifests that its ear
//! on the beacon groups hears.

pub mod control;
pub mod fill;
pub mod joins;
pub mod listening;
pub mod sources;
pub mod tee;
