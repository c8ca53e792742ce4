//! The numbers that the daemon shows: a [`Snapshot`] of them, and each as a sample with its name and labels. Every exporter
//! reads them here: `/metrics` and the management API of `admin`, the OTLP exporter of `telemetry`.

pub(crate) mod histograms;
pub(crate) mod host;
mod process;
pub(crate) mod prometheus;
mod protobuf;
pub(crate) mod samples;
mod snapshot;
mod xdp;

pub(crate) use host::{COMMIT, Host};
pub(crate) use process::Process;
pub(crate) use snapshot::{ClassUse, Latency};
pub use snapshot::{Snapshot, Source, StoreUse, Upstream};
pub use xdp::XdpReason;

/// Names of the lanes of the frame log, in their order: the label `ring`.
pub(crate) const RINGS: [&str; 2] = ["short", "long"];
