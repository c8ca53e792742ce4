//! What a developer of this project runs: `cargo xtask <verb>`. Each verb first makes sure that what it needs is there.

mod bench;
mod build;
mod build_ebpf;
mod check;
mod cluster;
mod context;
mod demo;
mod dist;
mod docs;
mod ebpf_toolchain;
mod install;
mod kernels;
mod test;
mod tools;

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::context::{Context, step};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Builds, shows, measures and tests retry-endpoint")]
struct Arguments {
    /// Name what is missing and end, instead of installing it.
    #[arg(long, global = true)]
    no_install: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Builds the eBPF objects: target/bpf/retry-ebpf.o and target/bpf/retry-bench.o.
    BuildEbpf,
    /// Builds the objects, then the release daemon with the object embedded: target/release/retry-endpoint.
    Build,
    /// Runs the daemon on a private fabric with loss and shows how it repairs (needs root or sudo, or `--rootless` in a user
    /// namespace, without XDP). The programs are built without optimisation unless `--release` is given.
    #[command(disable_help_flag = true)]
    Demo(PassedOn),
    /// Measures the daemon beside a reflector and a plain server; `--list` names the cases (needs root or sudo).
    #[command(disable_help_flag = true)]
    Bench(PassedOn),
    /// Starts a Redis Cluster of six and five endpoints in namespaces; `--smoke` proves that they work together.
    #[command(disable_help_flag = true)]
    Cluster(PassedOn),
    /// Runs the test suites.
    Test(test::Options),
    /// Formatting, words, lints of host and eBPF code as errors, documentation, and whether what is generated is current.
    Check,
    /// Builds what operators install, in target/dist: a static daemon, packages, an image, checksums and an SBOM.
    Dist,
    /// Writes what is generated in docs/: the tables of configuration.md, from the rows of retry-userspace/src/settings/table.
    Docs,
}

/// Arguments for the program that the verb starts.
#[derive(Debug, clap::Args)]
struct PassedOn {
    /// Options of the program; `--help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTION")]
    arguments: Vec<OsString>,
}

fn main() -> ExitCode {
    let Arguments { no_install, verb } = parse(std::env::args_os());
    let done = Context::new(no_install).and_then(|context| match verb {
        Verb::BuildEbpf => build_ebpf::run(&context).map(|()| ExitCode::SUCCESS),
        Verb::Build => build::run(&context).map(|()| ExitCode::SUCCESS),
        Verb::Demo(PassedOn { mut arguments }) => {
            let options = demo::Options::take(&mut arguments);
            demo::run(&context, options, &arguments)
        }
        Verb::Bench(PassedOn { arguments }) => bench::run(&context, &arguments),
        Verb::Cluster(PassedOn { arguments }) => cluster::run(&context, &arguments),
        Verb::Test(options) => test::run(&context, &options),
        Verb::Check => check::run(&context),
        Verb::Dist => dist::run(&context).map(|()| ExitCode::SUCCESS),
        Verb::Docs => docs::run(&context).map(|()| ExitCode::SUCCESS),
    });
    done.unwrap_or_else(|error| {
        step(format_args!("{error:#}"));
        ExitCode::FAILURE
    })
}

/// Reads the command line. `--no-install` is xtask's wherever it stands, also among options that are passed on.
fn parse(words: impl Iterator<Item = OsString>) -> Arguments {
    let mut arguments = Arguments::parse_from(words);
    if let Verb::Demo(passed) | Verb::Bench(passed) | Verb::Cluster(passed) = &mut arguments.verb {
        let before = passed.arguments.len();
        passed.arguments.retain(|word| word != "--no-install");
        arguments.no_install |= passed.arguments.len() < before;
    }
    arguments
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parsed(words: &[&str]) -> Arguments {
        parse(["cargo xtask"].iter().chain(words).map(OsString::from))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn demo_and_bench_pass_their_options_on() {
        let Verb::Demo(PassedOn { arguments }) = parsed(&["demo", "--seconds", "20", "--json"]).verb else {
            panic!("not a demo")
        };
        assert_eq!(arguments, ["--seconds", "20", "--json"]);
        let Verb::Bench(PassedOn { arguments }) = parsed(&["bench", "--quick"]).verb else { panic!("not a bench") };
        assert_eq!(arguments, ["--quick"]);
        let Verb::Demo(PassedOn { arguments }) = parsed(&["demo", "--help"]).verb else { panic!("not a demo") };
        assert_eq!(arguments, ["--help"]);
    }

    #[test]
    fn no_install_is_never_passed_on() {
        for words in
            [["--no-install", "demo", "--json"], ["demo", "--no-install", "--json"], ["demo", "--json", "--no-install"]]
        {
            let arguments = parsed(&words);
            assert!(arguments.no_install, "{words:?}");
            let Verb::Demo(PassedOn { arguments }) = arguments.verb else { panic!("not a demo") };
            assert_eq!(arguments, ["--json"], "{words:?}");
        }
        assert!(!parsed(&["check"]).no_install);
    }

    #[test]
    fn suites_and_filters_are_told_apart() {
        let Verb::Test(options) = parsed(&["test", "unit", "packets", "--unprivileged", "--", "vlan", "--exact"]).verb
        else {
            panic!("not a test")
        };
        assert_eq!(options.suites, ["unit", "packets"]);
        assert_eq!(options.filter, ["vlan", "--exact"]);
        assert!(options.unprivileged);
        assert!(Arguments::try_parse_from(["cargo xtask", "test", "nonsense"]).is_err());
    }
}
