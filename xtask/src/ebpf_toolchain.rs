//! The compiler for the kernel's target: Debian's, whose version matches its sources of `core`, or rustup's nightly.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    context::{Context, find_program, forget_toolchain, is_program, output},
    install,
};

/// The target of the objects: BPF, little-endian.
pub(crate) const TARGET: &str = "bpfel-unknown-none";
/// What the kernel accepts and the code needs: atomics (v3), unaligned reads of packets, line information for BTF.
const CODE_FLAGS: [&str; 3] = ["target-cpu=v3", "target-feature=+allows-misaligned-mem-access", "debuginfo=2"];
/// The oldest compiler that builds the crate; `rust-version` of the workspace.
const OLDEST: (u32, u32) = (1, 95);

/// A compiler that can build `core` for [`TARGET`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Toolchain {
    /// Debian's rustc-web, cargo-web and rust-web-src under `/usr`. The directory holds the sources of `core`.
    Debian(PathBuf),
    /// rustup's nightly with rust-src; likewise.
    Nightly(PathBuf),
}

impl Toolchain {
    /// Debian's first: it does not change from one day to the next.
    pub(crate) fn find() -> Option<Self> {
        Self::debian().or_else(Self::nightly)
    }

    fn debian() -> Option<Self> {
        let source = sources(Path::new("/usr"))?;
        is_program(Path::new("/usr/bin/cargo")).then_some(())?;
        let version = output(Command::new("/usr/bin/rustc").arg("--version")).ok()?;
        (version_of(&version)? >= OLDEST).then_some(Self::Debian(source))
    }

    fn nightly() -> Option<Self> {
        find_program("rustup")?;
        let mut command = Command::new("rustup");
        forget_toolchain(&mut command);
        let root = output(command.args(["run", "nightly", "rustc", "--print", "sysroot"])).ok()?;
        Some(Self::Nightly(sources(Path::new(root.trim()))?))
    }

    /// Whether its clippy is installed.
    pub(crate) fn has_clippy(&self) -> bool {
        match self {
            Self::Debian(_) => {
                is_program(Path::new("/usr/bin/cargo-clippy")) && is_program(Path::new("/usr/bin/clippy-driver"))
            }
            Self::Nightly(_) => {
                let mut command = Command::new("cargo");
                forget_toolchain(&mut command);
                output(command.args(["+nightly", "clippy", "--version"])).is_ok()
            }
        }
    }

    /// `cargo <subcommand>` for package retry-ebpf and the kernel's target.
    ///
    /// # Errors
    /// A path cannot be told.
    pub(crate) fn cargo(&self, context: &Context, subcommand: &str) -> Result<Command> {
        let mut command = match self {
            // cargo would look for its subcommands in ~/.cargo/bin first, where rustup's lie.
            Self::Debian(_) if subcommand == "clippy" => Command::new("/usr/bin/cargo-clippy"),
            Self::Debian(_) => Command::new("/usr/bin/cargo"),
            Self::Nightly(_) => Command::new("cargo"),
        };
        forget_toolchain(&mut command);
        match self {
            Self::Debian(_) => {
                // The flag makes a stable compiler accept `-Z build-std`.
                command.env("RUSTC", "/usr/bin/rustc").env("CARGO", "/usr/bin/cargo").env("RUSTC_BOOTSTRAP", "1");
            }
            Self::Nightly(_) => {
                command.arg("+nightly");
            }
        }
        command
            .arg(subcommand)
            .args(["--package", "retry-ebpf", "--target", TARGET, "-Z", "build-std=core"])
            .current_dir(&context.root)
            .env("CARGO_TARGET_DIR", context.target.join("bpf-build"))
            .env("CARGO_ENCODED_RUSTFLAGS", self.flags(context)?);
        Ok(command)
    }

    /// The compiler's flags, separated as cargo wants them so that a path may hold blanks.
    fn flags(&self, context: &Context) -> Result<OsString> {
        let mut flags: Vec<OsString> = Vec::new();
        let mut code = |flag: OsString| flags.extend([OsString::from("-C"), flag]);
        for flag in CODE_FLAGS {
            code(flag.into());
        }
        code("link-arg=--btf".into());
        code(joined("linker=", &linker(context), ""));
        // The object tells its lines to an operator: it does not tell where it was built.
        let mut remap = |from: &Path, to: &str| flags.push(joined("--remap-path-prefix=", from, to));
        remap(&context.root, "=.");
        remap(&cargo_home()?, "=/cargo");
        let (Self::Debian(source) | Self::Nightly(source)) = self;
        remap(source, "=/rust-src");
        if let Ok(real) = fs::canonicalize(source).as_deref()
            && real != source
        {
            remap(real, "=/rust-src");
        }
        Ok(flags.join(std::ffi::OsStr::new("\x1f")))
    }
}

fn joined(before: &str, path: &Path, after: &str) -> OsString {
    let mut text = OsString::from(before);
    text.push(path);
    text.push(after);
    text
}

pub(crate) fn cargo_home() -> Result<PathBuf> {
    let home = || env::home_dir().map(|home| home.join(".cargo"));
    env::var_os("CARGO_HOME").map(PathBuf::from).or_else(home).context("neither CARGO_HOME nor HOME is set")
}

/// The Rust sources below a compiler's root.
fn sources(root: &Path) -> Option<PathBuf> {
    let source = root.join("lib/rustlib/src/rust");
    source.join("library/core/src/lib.rs").is_file().then_some(source)
}

/// Major and minor number from `rustc 1.96.0 (…)`.
fn version_of(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split_whitespace().nth(1)?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Where bpf-linker is installed.
pub(crate) fn linker(context: &Context) -> PathBuf {
    context.target.join("tools/bin/bpf-linker")
}

/// Whether it is there, in the version asked for, and finds its libraries.
pub(crate) fn linker_works(context: &Context) -> bool {
    output(Command::new(linker(context)).arg("--version")).is_ok_and(|text| {
        text.split_whitespace().nth(1).is_some_and(|version| version.starts_with(install::LINKER_SERIES))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compared() {
        assert_eq!(version_of("rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)"), Some((1, 96)));
        assert_eq!(version_of("rustc 1.63.0"), Some((1, 63)));
        assert_eq!(version_of("rustc"), None);
        assert!((1, 63) < OLDEST && (1, 100) > OLDEST);
    }

    #[test]
    fn flags_survive_blanks_in_paths_and_tell_no_place() {
        let mut context = Context::new(true).expect("a workspace");
        context.root = PathBuf::from("/home/some one/retry");
        context.target = context.root.join("target");
        let flags = Toolchain::Debian(PathBuf::from("/usr/lib/rustlib/src/rust")).flags(&context).expect("HOME");
        let flags = flags.to_str().expect("text");
        let flags: Vec<&str> = flags.split('\x1f').collect();
        assert!(flags.contains(&"linker=/home/some one/retry/target/tools/bin/bpf-linker"));
        assert!(flags.contains(&"--remap-path-prefix=/home/some one/retry=."));
        assert!(flags.contains(&"--remap-path-prefix=/usr/lib/rustlib/src/rust=/rust-src"));
        assert!(flags.contains(&"link-arg=--btf"));
    }
}
