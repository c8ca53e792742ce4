//! What every verb knows: where things are, what it may do, and how it starts another program.

use std::{
    env,
    ffi::OsStr,
    fmt::Display,
    fs,
    io::{self, IsTerminal as _, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

/// Where Debian keeps programs of the administrator; a user's PATH often lacks them.
const ADMIN_DIRECTORIES: [&str; 2] = ["/usr/sbin", "/sbin"];

/// The workspace that this run is for: that of the manifest that cargo has just run, else the one around `here`. Not the one
/// that this program was compiled in: a copied tree brings its `target` along.
fn workspace(manifest: Option<PathBuf>, here: &Path) -> Option<PathBuf> {
    let of_manifest = manifest.as_deref().and_then(Path::parent);
    of_manifest
        .into_iter()
        .chain(here.ancestors())
        .find(|root| root.join("xtask/Cargo.toml").is_file())
        .map(Path::to_owned)
}

/// How a program that needs root is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Privilege {
    /// This process is root's.
    Root,
    /// By `sudo`.
    Sudo,
    /// Not at all.
    None,
}

/// The workspace and the rights of this run.
#[derive(Debug)]
pub(crate) struct Context {
    /// The workspace's directory.
    pub(crate) root: PathBuf,
    /// Cargo's target directory, absolute.
    pub(crate) target: PathBuf,
    /// Missing tools are an error instead of a reason to install them.
    pub(crate) no_install: bool,
    /// How privileged programs are started.
    pub(crate) privilege: Privilege,
}

impl Context {
    /// Finds the workspace and the way to root.
    ///
    /// # Errors
    /// The current directory cannot be told, or lies in no workspace with an xtask.
    pub(crate) fn new(no_install: bool) -> Result<Self> {
        let here = env::current_dir().context("current directory")?;
        let root = workspace(env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from), &here)
            .with_context(|| format!("{} lies in no workspace with an xtask", here.display()))?;
        let target = match env::var_os("CARGO_TARGET_DIR").filter(|value| !value.is_empty()) {
            Some(target) => here.join(target),
            None => root.join("target"),
        };
        Ok(Self { root, target, no_install, privilege: privilege() })
    }

    /// The object with the programs that answer NACKs.
    pub(crate) fn ebpf_object(&self) -> PathBuf {
        self.target.join("bpf/retry-ebpf.o")
    }

    /// The same programs for packets in one buffer only, as earlier versions had them.
    pub(crate) fn linear_object(&self) -> PathBuf {
        self.target.join("bpf/retry-ebpf-linear.o")
    }

    /// The object with the programs that the bench compares with.
    pub(crate) fn bench_object(&self) -> PathBuf {
        self.target.join("bpf/retry-bench.o")
    }

    /// The release daemon.
    pub(crate) fn endpoint(&self) -> PathBuf {
        self.target.join("release/retry-endpoint")
    }

    /// What operators install.
    pub(crate) fn dist(&self) -> PathBuf {
        self.target.join("dist")
    }

    /// The release testbed: demo and bench.
    pub(crate) fn testbed(&self) -> PathBuf {
        self.target.join("release/retry-testbed")
    }

    /// Where the programs under test and the daemon find each other.
    pub(crate) fn program_environment(&self) -> Vec<(&'static str, PathBuf)> {
        vec![
            ("RETRY_ENDPOINT_BIN", self.endpoint()),
            ("RETRY_EBPF_OBJECT", self.ebpf_object()),
            ("RETRY_EBPF_LINEAR", self.linear_object()),
            ("RETRY_BENCH_OBJECT", self.bench_object()),
            ("RETRY_BENCH_DIRECTORY", self.target.join("bench")),
            ("RETRY_TOOLS", self.target.join("tools")),
            ("RETRY_DIST_DIRECTORY", self.dist()),
        ]
    }

    /// The cargo that started this one, for code of the host, from the workspace's directory.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new("cargo");
        forget_outer_cargo(&mut command);
        command.current_dir(&self.root).env("CARGO_TARGET_DIR", &self.target);
        // The daemon's build script looks there by itself; told twice, it would build anew after every plain `cargo build`.
        if self.target != self.root.join("target") {
            command.env("RETRY_EBPF_OBJECT", self.ebpf_object());
        }
        command
    }

    /// `program` as root, with these variables.
    ///
    /// # Errors
    /// There is no way to root.
    pub(crate) fn as_root<'a>(
        &self,
        program: impl AsRef<OsStr>,
        environment: impl IntoIterator<Item = (&'a str, PathBuf)>,
    ) -> Result<Command> {
        let mut command = match self.privilege {
            Privilege::Root => {
                let mut command = Command::new(program);
                command.envs(environment);
                command
            }
            Privilege::Sudo => {
                let mut command = Command::new("sudo");
                // sudo drops the environment; `env` is a command like any other.
                command.arg("env");
                for (name, value) in environment {
                    let mut pair = std::ffi::OsString::from(name);
                    pair.push("=");
                    pair.push(value);
                    command.arg(pair);
                }
                command.arg(program);
                command
            }
            Privilege::None => bail!("{} needs root: run as root, or install sudo", program.as_ref().display()),
        };
        command.env("PATH", search_path());
        Ok(command)
    }

    /// Gives back to the user what a program started by sudo left in the tree.
    ///
    /// # Errors
    /// `chown` fails.
    pub(crate) fn give_back(&self) -> Result<()> {
        if self.privilege != Privilege::Sudo {
            return Ok(());
        }
        let mut foreign = Vec::new();
        roots_files(&self.root, &mut foreign);
        roots_files(&self.target, &mut foreign);
        for some in foreign.chunks(500) {
            let owner = format!("{}:{}", nix::unistd::getuid(), nix::unistd::getgid());
            let mut command = self.as_root("chown", [])?;
            command.args(["-h", &owner]).args(some);
            run(&mut command)?;
        }
        Ok(())
    }
}

/// Collects what is root's below a directory, symbolic links not followed. What cannot be read is left out: root's
/// directories are listed themselves, and their content is found by the next call.
fn roots_files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.uid() == 0 {
            found.push(entry.path());
        }
        if metadata.is_dir() {
            roots_files(&entry.path(), found);
        }
    }
}

fn privilege() -> Privilege {
    if nix::unistd::geteuid().is_root() {
        return Privilege::Root;
    }
    let silent = || {
        let mut command = Command::new("sudo");
        command.args(["-n", "true"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    // Where a person sits at the keyboard, sudo can ask.
    if find_program("sudo").is_some() && (silent() || io::stdin().is_terminal()) {
        Privilege::Sudo
    } else {
        Privilege::None
    }
}

/// Removes what `cargo run` and rustup's proxies put into the environment of this program: it describes xtask, and would
/// make an inner cargo build for the wrong package or rebuild what is up to date.
pub(crate) fn forget_outer_cargo(command: &mut Command) {
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_outer_cargo) {
            command.env_remove(name);
        }
    }
}

/// Removes what chooses or configures a compiler too, for a build that names its own.
pub(crate) fn forget_toolchain(command: &mut Command) {
    forget_outer_cargo(command);
    for name in [
        "RUSTUP_TOOLCHAIN",
        "RUSTC",
        "RUSTDOC",
        "RUSTFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_BUILD_RUSTFLAGS",
    ] {
        command.env_remove(name);
    }
}

fn is_outer_cargo(name: &str) -> bool {
    matches!(
        name,
        "CARGO"
            | "CARGO_MANIFEST_DIR"
            | "CARGO_MANIFEST_PATH"
            | "CARGO_MANIFEST_LINKS"
            | "CARGO_CRATE_NAME"
            | "CARGO_BIN_NAME"
            | "CARGO_PRIMARY_PACKAGE"
            | "OUT_DIR"
            | "RUST_RECURSION_COUNT"
            | "LD_LIBRARY_PATH"
    ) || name.starts_with("CARGO_PKG_")
}

/// PATH with the administrator's directories, for programs that are started and for looking for them.
pub(crate) fn search_path() -> std::ffi::OsString {
    let old = env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = env::split_paths(&old).collect();
    for directory in ADMIN_DIRECTORIES.map(PathBuf::from) {
        if !directories.contains(&directory) {
            directories.push(directory);
        }
    }
    env::join_paths(directories).unwrap_or(old)
}

/// Where a program lies.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    env::split_paths(&search_path()).map(|directory| directory.join(name)).find(|file| is_program(file))
}

/// Whether this is a file that can be executed.
pub(crate) fn is_program(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// One line that tells what happens now. On standard error: standard output belongs to the programs that are started.
pub(crate) fn step(text: impl Display) {
    // No process reads: no reason to stop.
    let _ = writeln!(io::stderr(), "xtask: {text}");
}

/// A line on standard output.
pub(crate) fn say(text: impl Display) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// Runs a command whose failure ends the verb. Its output goes to standard error.
///
/// # Errors
/// It cannot be started or fails; the message holds the command.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.stdout(io::stderr()).status().with_context(|| format!("cannot start {}", shown(command)))?;
    ensure!(status.success(), "{status}: {}", shown(command));
    Ok(())
}

/// Standard output of a command that says nothing else of interest.
///
/// # Errors
/// It cannot be started or fails; the message holds its standard error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {}", shown(command)))?;
    ensure!(
        output.status.success(),
        "{}: {}\n{}",
        output.status,
        shown(command),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Program and arguments, as a person would type them.
pub(crate) fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().map(OsStr::to_string_lossy));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_is_the_one_that_is_run() {
        let trees = tempfile_tree("workspace");
        let (one, other) = (trees.join("one"), trees.join("other"));
        for tree in [&one, &other] {
            fs::create_dir_all(tree.join("xtask/src")).expect("a directory");
            fs::write(tree.join("xtask/Cargo.toml"), "").expect("written");
        }
        assert_eq!(workspace(Some(one.join("xtask")), &other), Some(one.clone()));
        assert_eq!(workspace(None, &other.join("xtask/src")), Some(other));
        assert_eq!(workspace(Some(trees.join("gone/xtask")), &one), Some(one));
        assert_eq!(workspace(None, Path::new("/")), None);
        fs::remove_dir_all(trees).expect("cleaned");
    }

    fn tempfile_tree(name: &str) -> PathBuf {
        env::temp_dir().join(format!("xtask-{name}-{}", std::process::id()))
    }

    #[test]
    fn what_describes_xtask_is_forgotten_and_what_the_user_set_stays() {
        assert!(is_outer_cargo("CARGO_PKG_NAME"));
        assert!(is_outer_cargo("CARGO"));
        assert!(!is_outer_cargo("CARGO_HOME"));
        assert!(!is_outer_cargo("CARGO_TARGET_DIR"));
        assert!(!is_outer_cargo("CARGO_NET_OFFLINE"));
    }

    #[test]
    fn programs_are_found_by_name_and_directories_are_none() {
        assert!(find_program("sh").is_some());
        assert_eq!(find_program("no-such-program"), None);
        assert!(!is_program(Path::new("/")));
        assert!(!is_program(Path::new("/etc/passwd")));
    }

    #[test]
    fn sudo_takes_the_environment_as_arguments() {
        let mut context = Context::new(true).expect("a workspace");
        context.privilege = Privilege::Sudo;
        let command = context.as_root("/bin/prog", [("A", PathBuf::from("/x y"))]).expect("sudo");
        assert_eq!(shown(&command), "sudo env A=/x y /bin/prog");
        context.privilege = Privilege::None;
        assert!(context.as_root("/bin/prog", []).is_err());
    }
}
