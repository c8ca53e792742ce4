//! Whose frames are joined by name (RFC 4607).

use std::time::Duration;

use crate::settings::accepts::{Accepts, MILLISECOND, YEAR, any, time};
use crate::settings::hosts::{self, Host};
use crate::settings::rows::{Read, Row, Rows};

/// Whose frames are joined by name (RFC 4607).
#[derive(Clone, Debug)]
pub struct Ssm {
    /// Senders of shard manifests, which name the publishers.
    pub manifests: Vec<Host>,
    /// Senders of beacons: the beacon groups are joined from them.
    pub beacons: Vec<Host>,
    /// Announcers of subtrees: the subtree group is joined from them.
    pub subtree_announcers: Vec<Host>,
    /// Publishers that are joined whatever the manifests say; at most 16 without any manifest.
    pub publishers: Vec<Host>,
    /// Time after which names are asked again.
    pub refresh: Duration,
}

impl Ssm {
    pub(in crate::settings) fn read(rows: &mut Rows<'_>) -> Read<Self> {
        rows.group("Source-specific multicast");
        Ok(Self {
            manifests: rows.read(Row {
                flag: "ssm-bootstrap-manifest",
                env: "SSM_BOOTSTRAP_MANIFEST",
                default: "",
                accepts: sources(),
                meaning: "Senders of shard manifests.",
                consequence: "Their manifests name the sources of the data plane.",
            })?,
            beacons: rows.read(Row {
                flag: "ssm-bootstrap-beacon",
                env: "SSM_BOOTSTRAP_BEACON",
                default: "",
                accepts: sources(),
                meaning: "Senders of beacons.",
                consequence: "The beacon groups are joined from these sources.",
            })?,
            subtree_announcers: rows.read(Row {
                flag: "ssm-bootstrap-subtree-announce",
                env: "SSM_BOOTSTRAP_SUBTREE_ANNOUNCE",
                default: "",
                accepts: sources(),
                meaning: "Announcers of subtrees.",
                consequence: "The subtree group is joined from these sources.",
            })?,
            publishers: rows.read(Row {
                flag: "ssm-publishers-static",
                env: "SSM_PUBLISHERS_STATIC",
                default: "",
                accepts: sources(),
                meaning: "Publishers.",
                consequence: "Always joined; more than 16 need -ssm-bootstrap-manifest.",
            })?,
            refresh: rows.read(Row {
                flag: "ssm-bootstrap-refresh",
                env: "SSM_BOOTSTRAP_REFRESH",
                default: "30s",
                accepts: time(MILLISECOND, YEAR),
                meaning: "Time after which DNS names are asked again.",
                consequence: "A publisher that moved is heard again after it.",
            })?,
        })
    }
}

impl Ssm {
    /// True when any host is named.
    pub(in crate::settings) fn names_sources(&self) -> bool {
        [&self.manifests, &self.beacons, &self.subtree_announcers, &self.publishers]
            .iter()
            .any(|hosts| !hosts.is_empty())
    }
}

fn sources() -> Accepts<Vec<Host>> {
    any("IPv6 addresses and DNS names, comma separated", hosts::hosts)
}
