//! retry-endpoint: keeps the recent frames of a multicast fabric and answers NACKs for them, in the kernel where it can.
//!
//! The modules, in the order in which the daemon uses them:
//!
//! 1. `settings` are parsed and checked; `fabric` looks up what they name. `run` builds, starts and ends all parts, and gives them the settings that change meanwhile.
//! 2. `datapath` loads the XDP programs and gives the pages of the `framelog`; without BPF they are plain memory.
//! 3. `ingress` joins the groups and appends every frame to the log.
//! 4. The kernel program answers hits. What it does not take reaches `nack`, by socket or by event.
//! 5. `acl` says whose NACKs are looked at; `engine` decides as the kernel program does, with `limits` of its own; `repair` sends.
//! 6. What this endpoint does not have comes from the shared `store` or by `recovery` from upstream endpoints; `backoff`
//!    paces both. `dedup` says how instances that share a store avoid sending the same repair twice.
//! 7. `beacon` announces this endpoint and hears of others; `counters` counts, `latency` measures and `talkers` tells who asks most, `metrics` makes samples of all numbers;
//!    `admin` shows numbers and frames over HTTP; `telemetry` logs and exports.
//! 8. `interfaces` are watched, and the daemon follows what changes on the host.
//! 9. `verify_log` checks the log of a running daemon, from another process; `handover` shows and ends what outlives one.
//! 10. `ask` asks an endpoint for a frame as a listener does, and tells what came.
//! 11. `check` looks at a host before a daemon starts there.
//! 12. `firewall` makes lists of who may ask of the host's nftables rules.
//! 13. `watch` shows NACKs live, from another process; `feed` tells it what the daemon does.
//! 14. `top` shows the same as the status page in a terminal, from another process.
//! 15. `fdstore` keeps memberships and the NACK socket while no daemon runs; `service` tells the service manager how the daemon is.
//!
//! `net` has the sockets, `clock` the time, `notation` how numbers are written, `privileges` what the process may do, `shutdown` the signals, `stop_flag` the order to a thread. `parts` is what tests and the testbed may use of all this.
//!
//! # What imports what
//!
//! A module imports modules of earlier lines only; its tests may import any. The test `layers` holds the code to this list.
//!
//! 1. `clock`, `command_line`, `notation`, `service`, `settings`, `shutdown`
//! 2. `dedup`, `firewall`, `framelog`, `privileges`, `stop_flag`
//! 3. `backoff`, `counters`, `latency`, `limits`
//! 4. `acl`, `feed`, `net`, `talkers`
//! 5. `engine`, `fabric`, `store`
//! 6. `beacon`, `datapath`, `fdstore`
//! 7. `handover`, `ingress`, `metrics`, `recovery`, `verify_log`, `watch`
//! 8. `ask`, `interfaces`, `repair`, `telemetry`
//! 9. `admin`, `nack`, `top`
//! 10. `parts`, `run`, which imports every part
//! 11. `check`
//!
//! `datapath` alone knows aya and the names of maps.
//!
//! # Example
//!
//! The binary is not much more than this:
//!
//! ```no_run
//! use retry_userspace::{LogConfig, Settings, run, shutdown_signal, start_log};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let settings = Settings::from_args_and_env(std::env::args_os(), |name| std::env::var_os(name))
//!     .map_err(|stop| stop.to_string())?;
//! let log_level = start_log(&LogConfig::from(&settings));
//! run(&settings, log_level, shutdown_signal()).await?;
//! # Ok(())
//! # }
//! ```

mod acl;
mod admin;
mod ask;
mod backoff;
mod beacon;
mod check;
mod clock;
mod command_line;
mod counters;
mod datapath;
mod dedup;
mod engine;
mod fabric;
mod fdstore;
mod feed;
mod firewall;
mod framelog;
mod handover;
mod ingress;
mod interfaces;
mod latency;
mod limits;
mod metrics;
mod nack;
mod net;
mod notation;
pub mod parts;
mod privileges;
mod recovery;
mod repair;
mod run;
mod service;
mod settings;
mod shutdown;
mod stop_flag;
mod store;
mod talkers;
mod telemetry;
mod top;
mod verify_log;
mod watch;

pub use ask::main as nack;
pub use check::main as check;
pub use fdstore::{has_hold_verb, hold};
pub use firewall::main as firewall;
pub use handover::{detach, status};
pub use privileges::raise as raise_capabilities;
pub use recovery::probe::main as probe;
pub use run::{StartError, confine, run};
pub use settings::{Settings, Stop};
pub use shutdown::signal as shutdown_signal;
pub use telemetry::{Config as LogConfig, LogLevel, init as start_log};
pub use top::main as top;
pub use verify_log::main as verify_log;
pub use watch::main as watch;
