//! The golden files (datagrams of the field's own programs, captured with their decoded fields), and made datagrams.
#![allow(dead_code, reason = "each test binary uses a part of this")]

use std::fs;
use std::path::PathBuf;

use retry_common::crc32c;
use retry_common::wire::frame::{HEAD_LEN, Head, Version};
use retry_common::wire::manifest::{Groups, Manifest};

/// A golden file.
pub(crate) fn path(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "golden", name].iter().collect()
}

/// The datagram of a `.hex` file.
pub(crate) fn datagram(name: &str) -> Vec<u8> {
    let text = fs::read_to_string(path(name)).expect("a golden file");
    bytes(&text.split_whitespace().collect::<String>())
}

/// The bytes of hexadecimal digits.
fn bytes(digits: &str) -> Vec<u8> {
    assert_eq!(digits.len() % 2, 0, "two digits a byte: {digits}");
    let pairs = digits.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).expect("ASCII"));
    pairs.map(|pair| u8::from_str_radix(pair, 16).expect("hexadecimal digits")).collect()
}

/// The names of all golden files, sorted.
pub(crate) fn names() -> Vec<String> {
    let entries = fs::read_dir(path("")).expect("the golden directory");
    let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").file_name().into_string();
    let mut names: Vec<_> = entries.map(|entry| name(entry).expect("a name in UTF-8")).collect();
    names.sort_unstable();
    names
}

/// All versions.
pub(crate) const VERSIONS: [Version; 8] = [
    Version::Legacy,
    Version::Transaction,
    Version::Fragment,
    Version::Block,
    Version::SubtreeData,
    Version::Anchor,
    Version::Bundle,
    Version::Beef,
];

/// The frame of this head and payload.
pub(crate) fn written(head: &Head, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0xaa; HEAD_LEN + payload.len()];
    let len = head.write_frame(payload, &mut out).expect("room for the frame");
    out.truncate(len);
    out
}

/// Puts the right CRC into a manifest that is long enough to have one.
pub(crate) fn seal(bytes: &mut [u8]) {
    if bytes.len() >= 48 {
        bytes[44..48].fill(0);
        let crc = crc32c::of(&[bytes]);
        bytes[44..48].copy_from_slice(&crc.to_be_bytes());
    }
}

/// A manifest without sections.
pub(crate) fn plain() -> Manifest<'static> {
    Manifest {
        flags: 0,
        source: [0; 16],
        instance_id: 1,
        epoch_s: 2,
        ttl_s: 3,
        interval_s: 4,
        shard_bits: 12,
        role: 3,
        generation_id: [5; 16],
        groups: Groups::None,
        sources: &[],
        successor: None,
        rest: &[],
    }
}
