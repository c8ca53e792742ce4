//! Tells when the collector goes and when it is back: one line each, however many exports fail in between. The library
//! itself says nothing.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

/// How the exports of one kind went.
#[derive(Debug)]
pub(super) struct Outcomes {
    what: &'static str,
    endpoint: String,
    failing: AtomicBool,
}

impl Outcomes {
    pub(super) fn new(what: &'static str, endpoint: &str) -> Self {
        Self { what, endpoint: endpoint.to_owned(), failing: AtomicBool::new(false) }
    }

    /// Tells of an outcome that is another than the one before.
    pub(super) fn note<E: Display + ?Sized>(&self, outcome: Result<(), &E>) {
        let (what, endpoint) = (self.what, &self.endpoint);
        match (&outcome, self.failing.swap(outcome.is_err(), Ordering::Relaxed)) {
            (Err(error), false) => tracing::warn!(what, endpoint, %error, "-otlp-endpoint: exports do not arrive"),
            (Ok(()), true) => tracing::info!(what, endpoint, "-otlp-endpoint: exports arrive again"),
            (Err(_), true) | (Ok(()), false) => {}
        }
    }
}

/// An exporter of spans whose failures are told of.
#[derive(Debug)]
pub(super) struct Watched<E> {
    exporter: E,
    outcomes: Outcomes,
}

impl<E> Watched<E> {
    pub(super) const fn new(exporter: E, outcomes: Outcomes) -> Self {
        Self { exporter, outcomes }
    }
}

impl<E: SpanExporter> SpanExporter for Watched<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let outcome = self.exporter.export(batch).await;
        self.outcomes.note(outcome.as_ref().copied());
        outcome
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
