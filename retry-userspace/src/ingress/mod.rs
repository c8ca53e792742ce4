//! From the fabric into the frame log.
//!
//! [`subscription`] holds the sockets ([`joins`] from any source, [`ssm`] from named ones), [`fill`] stores what they receive,
//! [`tee`] what a program on this host hands on. With sources named, [`sources`] decides (purely) which, [`source_discovery`] finds
//! out: from DNS ([`resolve`]), and from the manifests that the [`beacon_listener`] on the beacon groups hears.

pub mod beacon_listener;
pub mod fill;
pub mod joins;
pub mod resolve;
pub mod source_discovery;
pub mod sources;
pub mod ssm;
pub mod subscription;
pub mod tee;
#[cfg(test)]
mod testing;
