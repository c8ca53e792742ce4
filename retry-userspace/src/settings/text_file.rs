//! Files of settings, as text of bounded length.

use std::fs::File;
use std::io::{self, Read as _};

/// The longest file that is read. All settings with all comments of the packages' file are a tenth of it.
const LONGEST: u64 = 1 << 20;

/// The text of a file.
///
/// # Errors
/// It cannot be read, is longer than a MiB, or is no UTF-8.
pub(super) fn read(path: &str) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LONGEST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LONGEST {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is longer than 1 MiB"));
    }
    Ok(text)
}
