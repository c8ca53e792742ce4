//! Metrics on their way to the collector: one snapshot per export, as the messages of OTLP. The library's instruments are not
//! used: none of them takes a histogram that was counted elsewhere.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
    ScopeMetrics, Sum, number_data_point,
};
use opentelemetry_sdk::Resource;
use tokio::runtime::Handle;
use tonic::metadata::{Ascii, MetadataKey, MetadataValue};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};

use super::SERVICE;
use super::otlp::PATIENCE;
use super::watched::Outcomes;
use crate::metrics::histograms::{self, Series};
use crate::metrics::samples::{Kind, Sample, families};
use crate::metrics::{Snapshot, Source};

/// Headers of each export: those for metrics alone, else those for all that is exported.
const HEADERS: [&str; 2] = ["OTEL_EXPORTER_OTLP_METRICS_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"];

/// Exports until [`Push::end`].
#[derive(Debug)]
pub(super) struct Push {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl Push {
    /// Starts exporting, on a thread of its own. To be called on a tokio runtime, which the connection lives on.
    pub(super) fn start(
        channel: Channel,
        interval: Duration,
        resource: Resource,
        source: Arc<dyn Source>,
        outcomes: Outcomes,
    ) -> Self {
        let (stop, stopped) = mpsc::channel();
        let runtime = Handle::current();
        let since = SystemTime::now();
        let headers = HEADERS.iter().find_map(|name| std::env::var(name).ok());
        let headers = headers.as_deref().map(headers_of).unwrap_or_default();
        let push = move || {
            let mut client = MetricsServiceClient::new(channel);
            loop {
                let is_last = stopped.recv_timeout(interval) != Err(RecvTimeoutError::Timeout);
                let message = message(&source.snapshot(), &resource, since, SystemTime::now());
                let mut request = tonic::Request::new(message);
                for (name, value) in &headers {
                    request.metadata_mut().insert(name, value.clone());
                }
                let export = async { tokio::time::timeout(PATIENCE, client.export(request)).await };
                match runtime.block_on(export) {
                    Ok(Ok(response)) => match response.into_inner().partial_success {
                        Some(partly) if partly.rejected_data_points > 0 => outcomes.note(Err(&format!(
                            "{} series were refused: {}",
                            partly.rejected_data_points, partly.error_message
                        ))),
                        _ => outcomes.note::<str>(Ok(())),
                    },
                    Ok(Err(status)) => outcomes.note(Err(&status)),
                    Err(late) => outcomes.note(Err(&late)),
                }
                if is_last {
                    return;
                }
            }
        };
        Self { stop, thread: thread::spawn(push) }
    }

    /// Exports once more, and ends. It blocks for two exports at most.
    pub(super) fn end(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            tracing::error!("-otlp-endpoint: the thread that exports metrics has panicked");
        }
    }
}

/// The connection to the collector, made with the first export. `https://` is held against the system's authorities.
pub(super) fn channel(url: &str) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(url.to_owned())?.timeout(PATIENCE);
    let endpoint = if url.starts_with("https://") {
        endpoint.tls_config(ClientTlsConfig::new().with_native_roots())?
    } else {
        endpoint
    };
    Ok(endpoint.connect_lazy())
}

/// Reads `name=value,...`, values percent-encoded. What is no header is left out and told of.
fn headers_of(text: &str) -> Vec<(MetadataKey<Ascii>, MetadataValue<Ascii>)> {
    let header = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        let value = percent_encoding::percent_decode_str(value.trim()).decode_utf8().ok()?;
        Some((name.trim().to_ascii_lowercase().parse().ok()?, value.parse().ok()?))
    };
    let mut headers = Vec::new();
    for pair in text.split(',').filter(|pair| !pair.trim().is_empty()) {
        match header(pair) {
            Some(header) => headers.push(header),
            // Its value may be a secret.
            None => tracing::warn!("{} or {}: one of its parts is no name=value", HEADERS[0], HEADERS[1]),
        }
    }
    headers
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn attribute(name: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) };
    KeyValue { key: name.to_owned(), value: Some(value), ..KeyValue::default() }
}

/// Everything that the snapshot has.
fn message(
    snapshot: &Snapshot,
    resource: &Resource,
    since: SystemTime,
    now: SystemTime,
) -> ExportMetricsServiceRequest {
    let times = Times { since: nanoseconds(since), now: nanoseconds(now) };
    let numbers = families(snapshot).into_iter().filter_map(|family| times.numbers(&family));
    let histograms = snapshot.latency.iter().flat_map(histograms::families).map(|family| Metric {
        name: family.name.to_owned(),
        description: family.help.to_owned(),
        unit: "s".to_owned(),
        data: Some(Data::Histogram(Histogram {
            data_points: family.series.iter().map(|series| times.histogram(series)).collect(),
            aggregation_temporality: AggregationTemporality::Cumulative.into(),
        })),
        ..Metric::default()
    });
    let scope = ScopeMetrics {
        scope: Some(InstrumentationScope { name: SERVICE.to_owned(), ..InstrumentationScope::default() }),
        metrics: numbers.chain(histograms).collect(),
        ..ScopeMetrics::default()
    };
    let resource =
        ResourceMetrics { resource: Some(resource.into()), scope_metrics: vec![scope], ..ResourceMetrics::default() };
    ExportMetricsServiceRequest { resource_metrics: vec![resource] }
}

/// From when sums count, and the time of the snapshot, nanoseconds of Unix time.
#[derive(Clone, Copy, Debug)]
struct Times {
    since: u64,
    now: u64,
}

impl Times {
    /// The series of one name; `None` without any.
    fn numbers(self, family: &[Sample]) -> Option<Metric> {
        let first = family.first()?;
        let data_points = family.iter().map(|sample| self.number(sample)).collect();
        let data = match first.kind {
            Kind::Counter => Data::Sum(Sum {
                data_points,
                aggregation_temporality: AggregationTemporality::Cumulative.into(),
                is_monotonic: true,
            }),
            Kind::Gauge => Data::Gauge(Gauge { data_points }),
        };
        Some(Metric {
            name: first.name.to_owned(),
            description: first.help.to_owned(),
            data: Some(data),
            ..Metric::default()
        })
    }

    fn number(self, sample: &Sample) -> NumberDataPoint {
        NumberDataPoint {
            attributes: sample.labels.iter().map(|(name, value)| attribute(name, value)).collect(),
            start_time_unix_nano: if sample.kind == Kind::Counter { self.since } else { 0 },
            time_unix_nano: self.now,
            value: Some(number_data_point::Value::AsDouble(sample.value)),
            ..NumberDataPoint::default()
        }
    }

    fn histogram(self, series: &Series) -> HistogramDataPoint {
        let buckets = series.buckets();
        HistogramDataPoint {
            attributes: series.labels.iter().map(|(name, value)| attribute(name, value)).collect(),
            start_time_unix_nano: self.since,
            time_unix_nano: self.now,
            count: series.histogram.count(),
            sum: Some(series.sum()),
            bucket_counts: buckets.iter().map(|(_, count)| *count).collect(),
            // The last bucket has no bound.
            explicit_bounds: buckets.iter().map(|(bound, _)| *bound).filter(|bound| bound.is_finite()).collect(),
            ..HistogramDataPoint::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_the_specification_has_them() {
        let read = headers_of("Authorization=Bearer%20a%3D1, x-scope-orgid = 7 ,,no header,bad name=1");
        let read: Vec<_> = read.iter().map(|(name, value)| (name.as_str(), value.to_str().expect("text"))).collect();
        assert_eq!(read, [("authorization", "Bearer a=1"), ("x-scope-orgid", "7")]);
    }
}
