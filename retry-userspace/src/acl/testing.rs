//! For the tests of other modules.

use std::net::Ipv6Addr;
use std::sync::Arc;

use retry_common::acl::Prefix;

use super::{Acl, Rules, Size, Tables};

/// Lists that refuse no source.
pub(crate) fn all_admitted() -> Arc<Acl> {
    Arc::new(Acl::new(Tables::plain(Size::default()).expect("memory"), 0))
}

/// Refuses these sources from now on.
pub(crate) fn deny(acl: &Acl, sources: &[Ipv6Addr]) {
    let deny = sources.iter().map(|source| Prefix::of(*source, 128)).collect();
    acl.replace(&Rules { deny, ..Rules::default() }).expect("room");
}
