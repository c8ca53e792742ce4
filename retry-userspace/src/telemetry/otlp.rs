//! OpenTelemetry: metrics and traces to a collector, OTLP over gRPC. Exports run on threads of their own; a collector that
//! is slow or gone holds no thread up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{AsyncInstrument, MeterProvider as _};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{ExporterBuildError, MetricExporter, SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};
use thiserror::Error;

use super::SERVICE;
use super::watched::Watched;
use crate::metrics::samples::{Kind, Sample, samples};
use crate::metrics::{Host, Snapshot, Source};
use crate::settings::Settings;

/// Longest time of one export, and of the last ones at the end.
const PATIENCE: Duration = Duration::from_secs(3);

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
#[derive(Debug, Error)]
#[error("-otlp-endpoint {endpoint}: {source}")]
pub struct OtlpError {
    /// The setting.
    endpoint: String,
    /// The library's words.
    source: ExporterBuildError,
}

/// What goes to the collector, until [`Exporter::shutdown`].
pub struct Exporter {
    metrics: SdkMeterProvider,
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
        let exporter = reached(MetricExporter::builder().with_tonic(), &url).build().map_err(fail)?;
        let exporter = Watched::new(exporter, "metrics", endpoint);
        let reader = PeriodicReader::builder(exporter).with_interval(config.interval).build();
        let metrics = SdkMeterProvider::builder().with_resource(resource.clone()).with_reader(reader).build();
        instruments(&metrics, source);
        let spans = reached(SpanExporter::builder().with_tonic(), &url).build().map_err(fail)?;
        let traces = SdkTracerProvider::builder()
            .with_resource(resource)
            // Which NACKs are traced is decided before there is a span.
            .with_sampler(Sampler::AlwaysOn)
            .with_batch_exporter(Watched::new(spans, "traces", endpoint))
            .build();
        Ok(Self { metrics, traces })
    }

    /// The tracer of NACKs.
    #[must_use]
    pub fn tracer(&self) -> SdkTracer {
        self.traces.tracer(SERVICE)
    }

    /// Sends what is left, metrics and traces at the same time, within a few seconds. It blocks: for a thread that may.
    pub fn shutdown(&self) {
        std::thread::scope(|scope| {
            scope.spawn(|| tell_end("metrics", &self.metrics.shutdown_with_timeout(PATIENCE)));
            tell_end("traces", &self.traces.shutdown_with_timeout(PATIENCE));
        });
    }
}

fn tell_end(what: &str, outcome: &OTelSdkResult) {
    if let Err(error) = outcome {
        tracing::warn!(%error, what, "-otlp-endpoint: the last export did not arrive");
    }
}

/// The way to the collector, the same for metrics and traces.
fn reached<B: WithExportConfig + WithTonicConfig>(builder: B, url: &str) -> B {
    let builder = builder.with_endpoint(url).with_timeout(PATIENCE);
    // The library trusts no certificate unless told which.
    if url.starts_with("https://") {
        builder.with_tls_config(ClientTlsConfig::new().with_native_roots())
    } else {
        builder
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

/// One snapshot for all instruments of an export.
struct Snapshots {
    source: Arc<dyn Source>,
    round: Mutex<Round>,
}

/// Each instrument asks once in an export, one after the other: the first that asks again begins the next.
#[derive(Default)]
struct Round {
    asked: BTreeSet<&'static str>,
    samples: BTreeMap<&'static str, Vec<Sample>>,
}

impl Snapshots {
    fn new(source: Arc<dyn Source>) -> Self {
        Self { source, round: Mutex::default() }
    }

    fn observe(&self, name: &'static str, instrument: &dyn AsyncInstrument<f64>) {
        let mut round = self.round.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = round.asked.is_empty();
        if !round.asked.insert(name) || is_first {
            *round = Round { asked: BTreeSet::from([name]), samples: by_name(samples(&self.source.snapshot())) };
        }
        for sample in round.samples.get(name).into_iter().flatten() {
            let labels: Vec<KeyValue> =
                sample.labels.iter().map(|(name, value)| KeyValue::new(*name, value.clone())).collect();
            instrument.observe(sample.value, &labels);
        }
    }
}

fn by_name(samples: Vec<Sample>) -> BTreeMap<&'static str, Vec<Sample>> {
    let mut families: BTreeMap<&'static str, Vec<Sample>> = BTreeMap::new();
    for sample in samples {
        families.entry(sample.name).or_default().push(sample);
    }
    families
}

/// An instrument for every metric that there is, or may be once it is known.
fn instruments(provider: &SdkMeterProvider, source: Arc<dyn Source>) {
    let meter = provider.meter(SERVICE);
    // The metrics of parts that have nothing to show yet have their names all the same.
    let all = by_name(samples(&Snapshot::complete()));
    let snapshots = Arc::new(Snapshots::new(source));
    for (name, samples) in all {
        let Some(first) = samples.first() else { continue };
        let snapshots = Arc::clone(&snapshots);
        let observe = move |instrument: &dyn AsyncInstrument<f64>| snapshots.observe(name, instrument);
        match first.kind {
            Kind::Counter => {
                meter.f64_observable_counter(name).with_description(first.help).with_callback(observe).build();
            }
            Kind::Gauge => {
                meter.f64_observable_gauge(name).with_description(first.help).with_callback(observe).build();
            }
        }
    }
}
