//! retry-endpoint: keeps the recent frames of a multicast fabric and answers NACKs for them, in the kernel where it can.
//!
//! The modules, in the order in which the daemon uses them:
//!
//! 1. [`settings`] are parsed and checked; [`fabric`] looks up what they name. `run` builds, starts and ends all parts.
//! 2. [`datapath`] loads the XDP programs and gives the pages of the [`framelog`]; without BPF they are plain memory.
//! 3. [`ingress`] joins the groups and appends every frame to the log.
//! 4. The kernel program answers hits. What it does not take reaches [`nack`], by socket or by event.
//! 5. [`engine`] decides as the kernel program does, with [`limits`] of its own; [`repair`] sends.
//! 6. What this endpoint does not have comes from the shared [`store`] or by [`recovery`] from upstream endpoints; [`backoff`]
//!    paces both. [`dedup`] says how instances of one store keep from sending the same repair.
//! 7. [`beacon`] announces this endpoint and hears of others; [`counters`] counts, [`metrics`] makes samples of all numbers;
//!    [`admin`] shows numbers and frames over HTTP; [`telemetry`] logs and exports.
//! 8. [`interfaces`] are watched, and the daemon follows what changes on the host.
//! 9. [`verify_log`] checks the log of a running daemon, from another process.
//!
//! [`net`] has the sockets, [`clock`] the time, [`shutdown`] the signals.
//!
//! # What imports what
//!
//! A module imports modules of earlier lines only; its tests may import any. The test `layers` holds the code to this list.
//!
//! 1. `clock`, `counters`, `settings`, `shutdown`
//! 2. `backoff`, `dedup`, `framelog`
//! 3. `limits`, `net`
//! 4. `engine`, `fabric`, `store`
//! 5. `beacon`, `datapath`
//! 6. `ingress`, `metrics`, `recovery`, `verify_log`
//! 7. `interfaces`, `repair`, `telemetry`
//! 8. `admin`, `nack`
//! 9. `run`, which imports every part
//!
//! `datapath` alone knows aya and the names of maps.

pub mod admin;
pub mod backoff;
pub mod beacon;
pub mod clock;
pub mod counters;
pub mod datapath;
pub mod dedup;
pub mod engine;
pub mod fabric;
pub mod framelog;
pub mod ingress;
pub mod interfaces;
pub mod limits;
pub mod metrics;
pub mod nack;
pub mod net;
pub mod recovery;
pub mod repair;
mod run;
pub mod settings;
pub mod shutdown;
pub mod store;
pub mod telemetry;
pub mod verify_log;

pub use run::{StartError, run};
