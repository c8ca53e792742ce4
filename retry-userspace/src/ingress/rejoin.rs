//! Says again at an interval what is joined (`-mc-rejoin-interval`), for a router or a switch that has forgotten it.

use std::fs;
use std::io;
use std::time::Duration;

use super::subscription::Rejoin;
use crate::net::interface;
use crate::net::mld::{self, Version};

/// Says it until the task is dropped; the first time after one interval, for the kernel has just said it.
pub(crate) async fn keep(interval: Duration, joined: Vec<Rejoin>) {
    let mut last: Option<io::ErrorKind> = None;
    loop {
        tokio::time::sleep(interval).await;
        let all = joined.clone();
        // Thousands of groups that are being joined keep the list locked.
        let said = tokio::task::spawn_blocking(move || all.iter().try_for_each(say)).await;
        let failed = said.unwrap_or_else(|error| Err(error.into())).err();
        let kind = failed.as_ref().map(io::Error::kind);
        if let Some(error) = failed.filter(|_| kind != last) {
            tracing::warn!(%error, "-mc-rejoin-interval: memberships are not said again; it needs CAP_NET_RAW, or 0");
        }
        last = kind;
    }
}

fn say(joined: &Rejoin) -> io::Result<()> {
    joined
        .memberships()
        .into_iter()
        .try_for_each(|(index, memberships)| mld::report(index, version(index), &memberships))
}

/// As the kernel speaks it on this interface.
fn version(index: u32) -> Version {
    let name = interface::name_of(index);
    let forced = fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{name}/force_mld_version"));
    if forced.is_ok_and(|text| text.trim() == "1") { Version::One } else { Version::Two }
}
