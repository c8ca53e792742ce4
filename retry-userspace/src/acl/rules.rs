//! The lists: from the settings, and from a file.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use retry_common::acl::{LENGTHS, Prefix};
use thiserror::Error;

use crate::settings::{self, Settings};

/// Prefixes that each list may have.
pub(crate) const MOST: usize = 100_000;
/// Bytes that a file of rules may have: 200,000 lines of the longest kind, and comments.
const MOST_BYTES: u64 = 32 << 20;

/// Why lists are not put in force.
#[derive(Debug, Error)]
pub enum RulesError {
    /// The file cannot be read.
    #[error("-acl-file {file}: {source}; a readable file of at most 32 MiB is accepted")]
    File {
        /// Its path.
        file: String,
        /// The system's words.
        source: io::Error,
    },
    /// The file changed while it was read.
    #[error("-acl-file {file}: it changed while it was read; it is read again")]
    Unsteady {
        /// Its path.
        file: String,
    },
    /// A line of the file is no rule.
    #[error("-acl-file {file}: line {line}: {value:?}: {accepted}")]
    Line {
        /// Its path.
        file: String,
        /// Its number, from 1.
        line: usize,
        /// What it says.
        value: String,
        /// What is accepted.
        accepted: String,
    },
    /// A list is longer than the tables hold.
    #[error("-acl-{list}, -acl-file: {count} prefixes are too many: at most {MOST} are accepted")]
    TooMany {
        /// The list.
        list: &'static str,
        /// Its prefixes.
        count: usize,
    },
    /// The prefixes have more lengths than a look-up tries.
    #[error(
        "-acl-allow, -acl-deny, -acl-file, -proxied-from, -publishers: prefixes of {count} lengths are too many: at most {LENGTHS} are accepted"
    )]
    Lengths {
        /// Different lengths.
        count: usize,
    },
    /// The tables were made for fewer.
    #[error(
        "-acl-allow, -acl-deny, -proxied-from, -publishers: {count} prefixes are more than the {room} that room was made for; start anew"
    )]
    Room {
        /// Prefixes.
        count: usize,
        /// For how many there is room.
        room: usize,
    },
    /// No seed spreads them: never seen.
    #[error("-acl-allow, -acl-deny, -acl-file: the prefixes do not fit the tables")]
    Unspread,
    /// The tables' memory cannot be had.
    #[error("-acl-file: cannot map the tables: {0}")]
    Memory(io::Error),
}

/// The lists.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rules {
    /// Sources that may ask.
    pub allow: BTreeSet<Prefix>,
    /// Sources that may not.
    pub deny: BTreeSet<Prefix>,
    /// Sources that are served as peers; `None`: all are.
    pub peers: Option<BTreeSet<Prefix>>,
    /// Sources whose frames are stored; `None`: those of all are.
    pub publishers: Option<BTreeSet<Prefix>>,
}

impl Rules {
    /// True when every source may ask, is served as a peer and publishes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty() && self.peers.is_none() && self.publishers.is_none()
    }

    /// All prefixes, each once.
    pub(super) fn prefixes(&self) -> BTreeSet<Prefix> {
        let (peers, publishers) = (self.peers.iter().flatten(), self.publishers.iter().flatten());
        self.allow.iter().chain(&self.deny).chain(peers).chain(publishers).copied().collect()
    }

    /// # Errors
    /// [`RulesError::TooMany`].
    fn check(self) -> Result<Self, RulesError> {
        for (list, count) in [("allow", self.allow.len()), ("deny", self.deny.len())] {
            if count > MOST {
                return Err(RulesError::TooMany { list, count });
            }
        }
        Ok(self)
    }
}

/// Where the lists come from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Source {
    /// What the settings themselves name.
    pub rules: Rules,
    /// The file of more.
    pub file: Option<PathBuf>,
}

impl From<&Settings> for Source {
    fn from(settings: &Settings) -> Self {
        let settings::Acl { allow, deny, file, proxied_from, publishers, .. } = &settings.acl;
        let set = |list: &[Prefix]| list.iter().copied().collect();
        let named = |list: &[Prefix]| (!list.is_empty()).then(|| set(list));
        let (peers, publishers) = (named(proxied_from), named(publishers));
        Self { rules: Rules { allow: set(allow), deny: set(deny), peers, publishers }, file: file.clone() }
    }
}

impl Source {
    /// The lists as they are now, and the state of the file that they were read from.
    ///
    /// # Errors
    /// The file cannot be read, or not all of it can stand.
    pub(crate) fn read(&self) -> Result<(Rules, Option<Stamp>), RulesError> {
        let (mut rules, mut stamp) = (self.rules.clone(), None);
        if let Some(path) = &self.file {
            let file = path.display().to_string();
            let failed = |source| RulesError::File { file: file.clone(), source };
            let before = fs::metadata(path).map_err(failed)?;
            if before.len() > MOST_BYTES {
                return Err(failed(io::ErrorKind::FileTooLarge.into()));
            }
            let text = fs::read_to_string(path).map_err(failed)?;
            // A program may be writing to it: what is read then is a part, and a part may allow what the whole denies.
            stamp = Some(Stamp::from(&before));
            if Stamp::of(path).ok() != stamp {
                return Err(RulesError::Unsteady { file });
            }
            add(&mut rules, &text, path)?;
        }
        Ok((rules.check()?, stamp))
    }
}

/// Adds what a file says.
fn add(rules: &mut Rules, text: &str, path: &Path) -> Result<(), RulesError> {
    const ACCEPTED: &str = "allow PREFIX or deny PREFIX is accepted, and # before a comment";
    for (number, whole) in text.lines().enumerate() {
        let rule = whole.split('#').next().unwrap_or_default();
        let refused = |accepted: String| RulesError::Line {
            file: path.display().to_string(),
            line: number + 1,
            value: whole.trim().chars().take(200).collect(),
            accepted,
        };
        let mut words = rule.split_whitespace();
        let (list, prefix) = match (words.next(), words.next(), words.next()) {
            (None, ..) => continue,
            (Some("allow"), Some(prefix), None) => (&mut rules.allow, prefix),
            (Some("deny"), Some(prefix), None) => (&mut rules.deny, prefix),
            _ => return Err(refused(ACCEPTED.to_owned())),
        };
        list.insert(settings::prefix(prefix).map_err(refused)?);
    }
    Ok(())
}

/// What a file's directory entry tells of its state.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Stamp([u64; 3], [i64; 4]);

impl From<&fs::Metadata> for Stamp {
    fn from(of: &fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt as _;
        Self([of.dev(), of.ino(), of.size()], [of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec()])
    }
}

impl Stamp {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        fs::metadata(path).map(|found| Self::from(&found))
    }
}
