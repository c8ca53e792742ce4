//! Prints the tables of docs/configuration.md; `cargo xtask docs` runs it.

use std::io::{self, Write as _};

fn main() -> io::Result<()> {
    io::stdout().write_all(retry_userspace::parts::settings::reference().as_bytes())
}
