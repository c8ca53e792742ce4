//! From the fabric into the frame log.
//!
//! [`subscription`] holds the sockets ([`joins`] from any source, [`ssm`] from named ones), [`fill`] stores what they receive,
//! [`tee`] what a program on this host hands on; [`class_ages`] keeps how old its frames are, [`rejoin`] says again what is
//! joined. With sources named, [`sources`] decides (purely) which, [`source_discovery`] finds
//! out: from DNS ([`resolve`]), and from the manifests that the [`beacon_listener`] on the beacon groups hears.
//!
//! A DNS name becomes a join like this: `resolve::look_up` → `source_discovery::Control` → `sources` (which addresses are
//! wanted) → a channel → the thread `joins-PORT`, `subscription::Joiner` → `ssm` → the socket option in `net::options`.

pub(crate) mod beacon_listener;
pub(crate) mod class_ages;
pub(crate) mod fill;
pub(crate) mod joins;
pub(crate) mod rejoin;
pub(crate) mod resolve;
pub(crate) mod source_discovery;
pub(crate) mod sources;
pub(crate) mod ssm;
pub(crate) mod subscription;
pub(crate) mod tee;
#[cfg(test)]
mod testing;
