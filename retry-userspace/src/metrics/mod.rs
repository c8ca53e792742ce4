//! The numbers that the daemon shows: a [`Snapshot`] of them, and each as a sample with its name and labels. Every exporter
//! reads them here: `/metrics` and the management API of `admin`, the OTLP exporter of `telemetry`.

pub mod host;
pub mod prometheus;
pub mod samples;
mod snapshot;

pub use host::Host;
pub use snapshot::{Snapshot, Source, StoreUse, Upstream};

/// Names of the lanes of the frame log, in their order: the label `ring`.
pub const RINGS: [&str; 2] = ["short", "long"];
