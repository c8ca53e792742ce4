//! The numbers that the daemon shows: a [`Snapshot`] of them, and each as a sample with its name and labels. Every exporter
//! reads them here: `/metrics` and the management API of `admin`, the OTLP exporter of `telemetry`.

pub(crate) mod host;
pub(crate) mod prometheus;
pub(crate) mod samples;
mod snapshot;

pub(crate) use host::Host;
pub(crate) use snapshot::StoreUse;
pub use snapshot::{Snapshot, Source, Upstream};

/// Names of the lanes of the frame log, in their order: the label `ring`.
pub(crate) const RINGS: [&str; 2] = ["short", "long"];
