//! `retry-testbed`: the demo, the bench and the cluster, for the verbs of `cargo xtask` with these names.

mod bench;
mod cluster;
mod demo;
mod session;
mod table;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(about = "Development only: runs the retry endpoint on a private fabric")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Publishes frames, loses some on the listeners' links, and shows how the endpoint repairs them.
    Demo(demo::Options),
    /// Measures how fast NACKs are answered.
    Bench(bench::Options),
    /// Starts a Redis Cluster of six and five endpoints, each on a host of its own.
    Cluster(cluster::Options),
}

fn main() -> ExitCode {
    let Arguments { command } = Arguments::parse();
    let done = match command {
        Command::Demo(options) => demo::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Cluster(options) => cluster::run(&options),
    };
    done.unwrap_or_else(|error| {
        eprintln!("retry-testbed: {error:#}");
        ExitCode::FAILURE
    })
}
