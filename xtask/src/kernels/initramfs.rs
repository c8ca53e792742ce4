//! An archive that a kernel unpacks as its first file system: cpio in the "newc" form (the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst).

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context as _, Result};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;

/// The archive under construction.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    directories: BTreeSet<String>,
}

impl Archive {
    /// Adds an executable file, and the directories above it. `path` is absolute.
    ///
    /// # Errors
    /// The file is 4 GiB or longer.
    pub(crate) fn file(&mut self, path: &str, content: &[u8]) -> Result<()> {
        self.parents(path)?;
        self.entry(path, PROGRAM, content)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// The target's name is 4 GiB or longer.
    pub(crate) fn link(&mut self, path: &str, target: &str) -> Result<()> {
        self.parents(path)?;
        self.entry(path, LINK, target.as_bytes())
    }

    /// Adds a directory and those above it, once.
    ///
    /// # Errors
    /// As of [`Archive::file`].
    pub(crate) fn directory(&mut self, path: &str) -> Result<()> {
        if path == "/" || path.is_empty() || !self.directories.insert(path.to_owned()) {
            return Ok(());
        }
        self.parents(path)?;
        self.entry(path, DIRECTORY, &[])
    }

    /// The whole archive, with its end.
    ///
    /// # Errors
    /// None in practice: the end has no content.
    pub(crate) fn finish(mut self) -> Result<Vec<u8>> {
        self.entry("/TRAILER!!!", 0, &[])?;
        Ok(self.bytes)
    }

    fn parents(&mut self, path: &str) -> Result<()> {
        Path::new(path).parent().and_then(Path::to_str).map_or(Ok(()), |parent| self.directory(parent))
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        let name = path.trim_start_matches('/');
        let length = |size: usize| u32::try_from(size).with_context(|| format!("{path} is too long for the archive"));
        self.entries += 1;
        // ino, mode, uid, gid, nlink, mtime, filesize, device and special-file numbers (four), namesize with its NUL, check.
        let fields = [self.entries, mode, 0, 0, 1, 0, length(content.len())?, 0, 0, 0, 0, length(name.len() + 1)?, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_laid_out_as_the_kernel_reads_it() {
        let mut archive = Archive::default();
        archive.file("/a", b"hello").expect("short");
        let bytes = archive.finish().expect("short");
        let text = String::from_utf8_lossy(&bytes);
        // magic 6, thirteen fields of eight digits: 110 bytes; name and NUL to 112; content to 117, padded to 120.
        assert_eq!(&text[..6], "070701");
        assert_eq!(&text[14..22], "000081ed", "mode");
        assert_eq!(&text[54..62], "00000005", "length");
        assert_eq!(&text[94..102], "00000002", "length of the name");
        assert_eq!(&text[110..117], "a\0hello");
        assert_eq!(&text[120..126], "070701");
        assert_eq!(&text[230..240], "TRAILER!!!");
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn directories_come_once_and_before_their_files() {
        let mut archive = Archive::default();
        archive.file("/lib/x/one", b"").expect("short");
        archive.file("/lib/x/two", b"").expect("short");
        archive.link("/lib/x/three", "one").expect("short");
        let bytes = archive.finish().expect("short");
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(text.matches("lib/x\0").count(), 1);
        let place = |name: &str| text.find(name).expect("it is there");
        assert!(place("lib\0") < place("lib/x\0") && place("lib/x\0") < place("lib/x/one\0"));
    }
}
