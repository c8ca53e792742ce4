//! Whose datagrams are looked at, and whose frames are stored.

use std::path::PathBuf;

use retry_common::acl::Prefix;

use crate::settings::accepts::{Accepts, any, whole};
use crate::settings::rows::{Read, Row, Rows};
use crate::settings::{prefixes, values};

/// Whose datagrams are looked at. With neither list those of every source are.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Acl {
    /// Sources that may ask. Where there is one, those that no prefix names may not.
    pub allow: Vec<Prefix>,
    /// Sources that may not.
    pub deny: Vec<Prefix>,
    /// A file with more of both, which is followed.
    pub file: Option<PathBuf>,
    /// Sources whose Proxied NACKs are served as a peer's; none: all are.
    pub proxied_from: Vec<Prefix>,
    /// Sources whose frames are stored; none: those of all are.
    pub publishers: Vec<Prefix>,
    /// The lowest hop limit of a NACK that is looked at; 0: any.
    pub hop_limit_min: u8,
}

impl Acl {
    pub(in crate::settings) fn read(rows: &mut Rows<'_>) -> Read<Self> {
        rows.group("Who may ask");
        Ok(Self {
            allow: rows.read(Row {
                flag: "acl-allow",
                env: "ACL_ALLOW",
                default: "",
                accepts: list(),
                meaning: "Prefixes of sources that may ask.",
                consequence: "What is named neither here nor in -acl-file is then dropped unread; the longest prefix decides. Neither set: every source may.",
            })?,
            deny: rows.read(Row {
                flag: "acl-deny",
                env: "ACL_DENY",
                default: "",
                accepts: list(),
                meaning: "Prefixes of sources that may not ask.",
                consequence: "Their datagrams are dropped unread, in the kernel program too; the longest prefix decides, and of two of one length this one.",
            })?,
            file: rows.read(Row {
                flag: "acl-file",
                env: "ACL_FILE",
                default: "",
                accepts: any("a file path", values::optional_path),
                meaning: "File with rules, one per line: allow PREFIX or deny PREFIX; # begins a comment.",
                consequence: "Read again when it changes and on SIGHUP; one with a bad line changes nothing. Takes 40 MiB for 262,144 prefixes.",
            })?,
            proxied_from: rows.read(Row {
                flag: "proxied-from",
                env: "PROXIED_FROM",
                default: "",
                accepts: list(),
                meaning: "Prefixes of endpoints that are served a unicast copy when they ask for themselves.",
                consequence: "A Proxied NACK of another source gets what a listener gets. Not set: all get a copy.",
            })?,
            publishers: rows.read(Row {
                flag: "publishers",
                env: "PUBLISHERS",
                default: "",
                accepts: list(),
                meaning: "Prefixes of sources whose frames are stored.",
                consequence: "Frames of another source are counted and not stored, repairs of another endpoint among them. Not set: those of every source are.",
            })?,
            hop_limit_min: rows.read(Row {
                flag: "hop-limit-min",
                env: "HOP_LIMIT_MIN",
                default: "0",
                accepts: whole(0..=255),
                meaning: "The lowest hop limit of a NACK that is looked at (RFC 5082); 0: any.",
                consequence: "255 serves senders on the link alone, if they send with 255.",
            })?,
        })
    }
}

fn list() -> Accepts<Vec<Prefix>> {
    any("IPv6 prefixes, comma separated", prefixes::prefixes)
}
