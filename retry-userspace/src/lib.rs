//! retry-endpoint: keeps the recent frames of a multicast fabric and answers NACKs for them, in the kernel where it can.
//!
//! The flow, and the modules in its order:
//!
//! 1. [`settings`] are parsed and checked; [`fabric`] looks up what they name.
//! 2. [`datapath`] loads the XDP program and gives the pages of the [`framelog`]; without BPF they are plain memory.
//! 3. [`ingress`] joins the groups and appends every frame to the log.
//! 4. The kernel answers hits. What it does not take reaches [`nack`], by socket or by event.
//! 5. [`engine`] decides as the kernel does; [`repair`] sends.
//! 6. [`beacon`] announces, [`admin`] shows, [`telemetry`] tells.
//! 7. [`interfaces`] are watched: what changes underneath is followed.
//!
//! [`verify_log`] checks the log of a daemon that runs, from another process.
//!
//! Nothing below imports anything above it; [`datapath`] alone knows aya.

pub mod admin;
pub mod backoff;
pub mod beacon;
pub mod clock;
pub mod counters;
pub mod datapath;
pub mod engine;
pub mod fabric;
pub mod framelog;
pub mod ingress;
pub mod interfaces;
pub mod limits;
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
