//! `demo`: the daemon on a private fabric with loss. The options are the program's: `cargo xtask demo --help`.
//!
//! A first run is short: the programs are built without optimisation, which the kernel's answers do not depend on, and beside
//! the object, which they therefore load from its file.

use std::{ffi::OsString, process::Command, process::ExitCode, thread};

use anyhow::{Context as _, Result, ensure};

use crate::{
    build, build_ebpf,
    context::{Context, output, run as run_command, step},
    tools::{self, Use},
};

/// What is done by this program; the demo's own options are passed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Build and run the release daemon.
    pub(crate) release: bool,
    /// Run in a user namespace instead of as root.
    pub(crate) rootless: bool,
}

/// The demo's namespaces and file systems in those of a user namespace. What needs the host's root fails there: XDP.
const ROOTLESS: [&str; 6] = ["--user", "--map-root-user", "--net", "--mount", "--propagation", "private"];
const SETUP: &str = "mount -t tmpfs run /run && mkdir /run/netns && exec \"$@\"";

impl Options {
    /// Takes these options out of the arguments, wherever they stand.
    pub(crate) fn take(arguments: &mut Vec<OsString>) -> Self {
        let mut taken = |word: &str| {
            let before = arguments.len();
            arguments.retain(|argument| argument != word);
            arguments.len() < before
        };
        Self { release: taken("--release"), rootless: taken("--rootless") }
    }
}

/// Builds and runs the demo.
///
/// # Errors
/// A tool is missing, a build fails, or there is no way to root.
pub(crate) fn run(context: &Context, options: Options, arguments: &[OsString]) -> Result<ExitCode> {
    if options.release && !options.rootless {
        return build::run_testbed(context, "demo", arguments);
    }
    ensure!(
        !options.rootless || arguments.iter().all(|argument| argument != "--page"),
        "--page and --rootless: a user namespace has no network of this host for the page to be at"
    );
    let programs = if options.release { "release" } else { "debug" };
    let testbed = context.target.join(programs).join("retry-testbed");
    let mut environment = context.program_environment();
    environment.push(("RETRY_ENDPOINT_BIN", context.target.join(programs).join("retry-endpoint")));
    // Before the build, which takes a minute: whether there is a way to run what it makes.
    let mut command = if options.rootless {
        output(Command::new("unshare").args(ROOTLESS).arg("true"))
            .context("this kernel or its settings let this user make no user namespace; without --rootless the demo asks for root")?;
        let mut command = Command::new("unshare");
        command.args(ROOTLESS).args(["sh", "-c", SETUP, "sh"]).arg(testbed).envs(environment);
        command.env("PATH", crate::context::search_path());
        command
    } else {
        context.as_root(testbed, environment).context("or run with --rootless, which needs neither")?
    };
    build_all(context, options.release)?;
    command.arg("demo").args(arguments);
    step("retry-testbed demo");
    let code = build::exit_code(&mut command);
    context.give_back()?;
    code
}

/// The object beside the programs. The one waits for installations and the other for compilers.
fn build_all(context: &Context, release: bool) -> Result<()> {
    let packages = ["build", "--bins", "--package", "retry-userspace", "--package", "retry-testbed"];
    thread::scope(|scope| {
        let object = scope.spawn(|| {
            tools::ensure(context, &[Use::Ebpf, Use::Fabric])?;
            build_ebpf::build_object(context)
        });
        step("build the daemon and the testbed");
        let mut build = context.cargo();
        build.args(packages).args(release.then_some("--release"));
        if !release {
            // Of this workspace's crates alone: what only a debugger and a second build need takes a quarter of their first one.
            build.env("CARGO_INCREMENTAL", "0").env("CARGO_PROFILE_DEV_DEBUG", "false");
        }
        let programs = run_command(&mut build);
        let object = object.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        programs?;
        object?;
        ensure!(context.ebpf_object().is_file(), "no object at {}", context.ebpf_object().display());
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_this_program_are_taken_wherever_they_stand() {
        let mut words: Vec<OsString> = ["--seconds", "5", "--rootless", "--json"].map(OsString::from).into();
        assert_eq!(Options::take(&mut words), Options { release: false, rootless: true });
        assert_eq!(words, ["--seconds", "5", "--json"]);
        assert_eq!(Options::take(&mut words), Options::default());
    }
}
