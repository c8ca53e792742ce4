//! Pages that go from one core to the other a few at a time.
//!
//! The generator's pages come from its own core, and where the server drops a packet, or answers with another, they are freed
//! on the server's: they go back through the page allocator. It keeps freed pages for the core and then gives back up to
//! 2,016 of them at once, which takes 200 µs here; a queue of 256 packets is full after that. A network card's driver uses
//! its pages again on the core that they came in by, so none of that would be seen there. With the shortest lists that the
//! kernel allows, it is 190 pages and a tenth of the time. All contenders have it so.

use anyhow::{Context, Result};

const SETTING: &str = "/proc/sys/vm/percpu_pagelist_high_fraction";
/// A core keeps at most this share of a zone: less than the least that it always may, which is four batches.
const SHARE: &str = "1000000";

/// Keeps the lists short as long as this lives.
#[derive(Debug)]
pub(crate) struct ShortLists {
    before: String,
}

impl ShortLists {
    /// Shortens the lists of the whole machine.
    pub(crate) fn new() -> Result<Self> {
        let before = std::fs::read_to_string(SETTING).context(SETTING)?.trim().to_owned();
        std::fs::write(SETTING, SHARE).context(SETTING)?;
        Ok(Self { before })
    }
}

impl Drop for ShortLists {
    fn drop(&mut self) {
        let Self { before } = self;
        if let Err(error) = std::fs::write(SETTING, before.as_str()) {
            eprintln!("{SETTING} keeps {SHARE} (was {before}): {error}");
        }
    }
}
