//! Discovered upstreams on disk, so that a cold start asks them before it has heard a beacon.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Its name in `-state-dir`.
const NAME: &str = "upstreams.json";
/// Seconds after which the file is no longer believed.
const TOO_OLD_S: u64 = 24 * 3600;

/// What stands in it.
#[derive(Debug, Deserialize, Serialize)]
struct Saved {
    /// Seconds since 1970.
    saved_at: u64,
    /// Where they take NACKs, in their order.
    discovered: Vec<SocketAddr>,
}

/// The file.
#[derive(Clone, Debug)]
pub(super) struct StateFile(PathBuf);

/// Seconds since 1970.
pub(super) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl StateFile {
    pub(super) fn in_directory(directory: &Path) -> Self {
        Self(directory.join(NAME))
    }

    /// What the last run discovered; nothing, and a line in the log, when it is too old or cannot be read.
    pub(super) fn load(&self, now_s: u64) -> Vec<SocketAddr> {
        let read = fs::read(&self.0).and_then(|text| Ok(serde_json::from_slice::<Saved>(&text)?));
        match read {
            Ok(saved) if now_s.saturating_sub(saved.saved_at) <= TOO_OLD_S => saved.discovered,
            Ok(saved) => {
                let (file, age_s) = (self.0.display(), now_s.saturating_sub(saved.saved_at));
                tracing::warn!(%file, age_s, "-state-dir: the upstreams discovered last are too old to be asked");
                Vec::new()
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                let file = self.0.display();
                tracing::warn!(%file, %error, "-state-dir: the upstreams discovered last cannot be read");
                Vec::new()
            }
        }
    }

    /// Saves them; a line in the log when that fails.
    pub(super) fn save(&self, now_s: u64, discovered: Vec<SocketAddr>) {
        if let Err(error) = self.write(&Saved { saved_at: now_s, discovered }) {
            let file = self.0.display();
            tracing::warn!(%file, %error, "-state-dir: discovered upstreams cannot be saved");
        }
    }

    /// Writes beside the file and renames, so that a crash leaves the old one or the new one.
    fn write(&self, saved: &Saved) -> io::Result<()> {
        if let Some(directory) = self.0.parent() {
            fs::create_dir_all(directory)?;
        }
        let new = self.0.with_extension("json.new");
        let mut out = File::create(&new)?;
        out.write_all(&serde_json::to_vec_pretty(saved)?)?;
        out.sync_all()?;
        fs::rename(&new, &self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded_for_a_day() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = StateFile::in_directory(&directory.path().join("not/yet/there"));
        assert_eq!(file.load(0), []);
        let discovered: Vec<SocketAddr> =
            ["[fd10::2]:9300", "[fe80::1%2]:9300"].iter().map(|text| text.parse().expect("an address")).collect();
        let saved_at = 1_000_000;
        file.save(saved_at, discovered.clone());
        assert_eq!(file.load(saved_at + TOO_OLD_S), discovered);
        assert_eq!(file.load(saved_at + TOO_OLD_S + 1), []);
        // A clock that was set back does not make it old.
        assert_eq!(file.load(5), discovered);
        file.save(saved_at, discovered[..1].to_vec());
        assert_eq!(file.load(saved_at), discovered[..1]);
        let beside = fs::read_dir(file.0.parent().expect("a directory")).expect("read").count();
        assert_eq!(beside, 1, "nothing is left beside it");
    }

    #[test]
    fn what_cannot_be_read_is_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = StateFile::in_directory(directory.path());
        for text in ["", "{ \"saved_at\": 1", "[]", "{\"saved_at\":1,\"discovered\":[\"nowhere\"]}"] {
            fs::write(&file.0, text).expect("written");
            assert_eq!(file.load(1), [], "{text}");
        }
        fs::remove_file(&file.0).expect("removed");
        fs::create_dir(&file.0).expect("made");
        assert_eq!(file.load(1), []);
        // Told in the log, and nothing else.
        file.save(1, Vec::new());
    }
}
