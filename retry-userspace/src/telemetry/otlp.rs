//! OpenTelemetry: metrics and traces to a collector, OTLP over gRPC. Exports run on threads of their own; a collector that
//! is slow or gone holds no thread up.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};

use super::SERVICE;
use super::push::{self, Push};
use super::watched::{Outcomes, Watched};
use crate::metrics::{Host, Source};
use crate::settings::Settings;

/// Longest time of one export.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

/// Where metrics and traces go, and how often.
#[derive(Clone, Debug)]
pub struct Config {
    /// `otlp-endpoint`: `host:port` or URL.
    pub endpoint: String,
    /// `otlp-interval`: time between exports.
    pub interval: Duration,
    /// `instance`: our name at the collector.
    pub instance: String,
}

impl Config {
    /// As the settings ask; `None` without `-otlp-endpoint`.
    #[must_use]
    pub fn from(settings: &Settings) -> Option<Self> {
        let (otlp, instance) = (&settings.telemetry.otlp, &settings.telemetry.instance);
        let endpoint = otlp.endpoint.clone()?;
        Some(Self { endpoint, interval: otlp.interval, instance: instance.clone() })
    }
}

/// Exporting could not be started.
#[derive(Debug, thiserror::Error)]
#[error("-otlp-endpoint {endpoint}: {source}")]
pub struct OtlpError {
    /// The setting.
    endpoint: String,
    /// The library's words.
    source: Box<dyn Error + Send + Sync>,
}

/// What goes to the collector, until [`Exporter::shutdown`].
pub struct Exporter {
    metrics: Push,
    traces: SdkTracerProvider,
}

impl Exporter {
    /// Starts exporting. To be called on a tokio runtime, which the connection lives on. An `https://` endpoint is held against the certificate authorities of the system.
    ///
    /// # Errors
    /// [`OtlpError`]: the library does not take the endpoint. A collector that is not there is no error: it is told of in
    /// the log, once.
    pub fn start(config: &Config, source: Arc<dyn Source>) -> Result<Self, OtlpError> {
        let endpoint = &config.endpoint;
        let url = if endpoint.contains("://") { endpoint.clone() } else { format!("http://{endpoint}") };
        let fail = |source| OtlpError { endpoint: endpoint.clone(), source };
        let resource = resource(&config.instance);
        let channel = push::channel(&url).map_err(|error| fail(error.into()))?;
        let spans = SpanExporter::builder().with_tonic().with_channel(channel.clone()).with_timeout(PATIENCE).build();
        let spans = Watched::new(spans.map_err(|error| fail(error.into()))?, Outcomes::new("traces", endpoint));
        let traces = SdkTracerProvider::builder()
            .with_resource(resource.clone())
            // Which NACKs are traced is decided before there is a span.
            .with_sampler(Sampler::AlwaysOn)
            .with_batch_exporter(spans)
            .build();
        let metrics = Push::start(channel, config.interval, resource, source, Outcomes::new("metrics", endpoint));
        Ok(Self { metrics, traces })
    }

    /// The tracer of NACKs.
    #[must_use]
    pub fn tracer(&self) -> SdkTracer {
        self.traces.tracer(SERVICE)
    }

    /// Sends what is left, metrics and traces at the same time, within a few seconds. It blocks: for a thread that may.
    pub fn shutdown(self) {
        let Self { metrics, traces } = self;
        std::thread::scope(|scope| {
            scope.spawn(|| metrics.end());
            if let Err(error) = traces.shutdown_with_timeout(PATIENCE) {
                tracing::warn!(%error, what = "traces", "-otlp-endpoint: the last export did not arrive");
            }
        });
    }
}

fn resource(instance: &str) -> Resource {
    let host = Host::here(instance);
    Resource::builder_empty()
        .with_service_name(SERVICE)
        .with_attributes([
            KeyValue::new("service.instance.id", instance.to_owned()),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("host.name", host.name),
            KeyValue::new("host.arch", host.arch),
        ])
        .build()
}
