//! The exporter by itself: every number under its name, spans, and collectors that are not there.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Histogram, Metric, NumberDataPoint, metric::Data,
};
use retry_common::key::FrameKey;
use retry_common::wire::nack::Nack;
use retry_userspace::parts::metrics::prometheus::{self, Format};
use retry_userspace::parts::metrics::samples::{Kind, samples};
use retry_userspace::parts::metrics::{Snapshot, Source, Upstream};
use retry_userspace::parts::settings::Settings;
use retry_userspace::parts::telemetry::otlp::{Config, Exporter};
use retry_userspace::parts::telemetry::trace::NackTracer;

use crate::server::{Collector, INSTANCE, free_address, loopback, resource, series, text};

struct Fixed(Snapshot);

impl Source for Fixed {
    fn snapshot(&self) -> Snapshot {
        self.0.clone()
    }
}

fn snapshot() -> Snapshot {
    let mut snapshot = Snapshot { frames: 4711, xdp_mode: "native", ..Snapshot::complete() };
    snapshot.kernel.cache_hits = 17;
    snapshot.user.cache_hits = 4;
    snapshot.user.proxy_failed_miss = 3;
    let latency = snapshot.latency.as_mut().expect("a complete one");
    for (_, histogram) in &mut latency.user {
        for ns in [900, 30_000, 5_000_000_000, 40_000_000_000] {
            histogram.add(ns, 2);
        }
    }
    snapshot
}

fn config(endpoint: String) -> Config {
    Config { endpoint, interval: Duration::from_secs(1), instance: INSTANCE.to_owned() }
}

fn exporter(address: SocketAddr) -> Exporter {
    let source = Arc::new(Fixed(snapshot()));
    Exporter::start(&config(format!("http://{address}")), source).expect("the endpoint is accepted")
}

async fn shut_down(exporter: Exporter) {
    tokio::task::spawn_blocking(move || exporter.shutdown()).await.expect("no panic");
}

fn metrics(export: &ExportMetricsServiceRequest) -> Vec<&Metric> {
    let scopes = export.resource_metrics.iter().flat_map(|one| &one.scope_metrics);
    scopes.flat_map(|scope| &scope.metrics).collect()
}

fn points(metric: &Metric) -> (Kind, &[NumberDataPoint]) {
    match metric.data.as_ref().expect("data") {
        Data::Sum(sum) => {
            assert!(sum.is_monotonic, "{}", metric.name);
            (Kind::Counter, &sum.data_points)
        }
        Data::Gauge(gauge) => (Kind::Gauge, &gauge.data_points),
        other => panic!("{}: {other:?}", metric.name),
    }
}

/// Every series of /metrics, under its name and labels, with its value; and who sends them.
#[tokio::test(flavor = "multi_thread")]
async fn metrics_arrive_as_they_are_scraped() {
    let collector = Collector::default();
    let address = collector.serve(loopback(0), None).await;
    let exporter = exporter(address);
    let export = collector.wait_for_metrics(1).await.remove(0);

    let who = ["service.name", "service.instance.id", "service.version"].map(|name| resource(&export, name));
    assert_eq!(who, ["retry-endpoint", INSTANCE, env!("CARGO_PKG_VERSION")]);

    let metrics = metrics(&export);
    let expected = samples(&snapshot());
    for sample in &expected {
        let metric = metrics.iter().find(|metric| metric.name == sample.name);
        let metric = metric.unwrap_or_else(|| panic!("{} did not arrive", sample.name));
        assert_eq!(metric.description, sample.help);
        let (kind, points) = points(metric);
        assert_eq!(kind, sample.kind, "{}", sample.name);
        let point = points.iter().find(|point| {
            point.attributes.len() == sample.labels.len()
                && sample.labels.iter().all(|(name, value)| text(&point.attributes, name) == *value)
        });
        let point = point.unwrap_or_else(|| panic!("{} {:?} did not arrive", sample.name, sample.labels));
        assert_eq!(point.value, Some(Number::AsDouble(sample.value)), "{} {:?}", sample.name, sample.labels);
    }
    let numbers = metrics.iter().filter(|metric| !matches!(metric.data, Some(Data::Histogram(_))));
    let arrived: usize = numbers.map(|metric| points(metric).1.len()).sum();
    assert_eq!(arrived, expected.len(), "series");
    shut_down(exporter).await;
}

/// A line of the text for every bucket, with sum and count: the classic histograms of /metrics.
fn classic(metric: &Metric, histogram: &Histogram) -> Vec<String> {
    assert_eq!(histogram.aggregation_temporality, i32::from(AggregationTemporality::Cumulative), "{}", metric.name);
    let mut lines = Vec::new();
    for point in &histogram.data_points {
        let labels = |more: Option<String>| {
            let own =
                point.attributes.iter().map(|one| format!("{}=\"{}\"", one.key, text(&point.attributes, &one.key)));
            let mut all: Vec<String> = own.chain(more).collect();
            all.sort();
            all.join(",")
        };
        let bounds = point.explicit_bounds.iter().map(f64::to_string).chain(["inf".to_owned()]);
        assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1, "{}", metric.name);
        let mut up_to = 0;
        for (bound, count) in bounds.zip(&point.bucket_counts) {
            up_to += count;
            lines.push(format!("{}_bucket{{{}}} {up_to}", metric.name, labels(Some(format!("le=\"{bound}\"")))));
        }
        lines.push(format!("{}_sum{{{}}} {}", metric.name, labels(None), point.sum.expect("a sum")));
        lines.push(format!("{}_count{{{}}} {}", metric.name, labels(None), point.count));
    }
    lines
}

/// The histograms are those of /metrics, bucket by bucket.
#[tokio::test(flavor = "multi_thread")]
async fn histograms_arrive_as_they_are_scraped() {
    let collector = Collector::default();
    let address = collector.serve(loopback(0), None).await;
    let exporter = exporter(address);
    let export = collector.wait_for_metrics(1).await.remove(0);
    shut_down(exporter).await;
    let mut arrived = Vec::new();
    for metric in metrics(&export) {
        if let Some(Data::Histogram(histogram)) = &metric.data {
            assert_eq!(metric.unit, "s", "{}", metric.name);
            arrived.extend(classic(metric, histogram));
        }
    }
    let scrape = prometheus::encode(&snapshot(), Format::Text).expect("text");
    let scrape = String::from_utf8(scrape).expect("UTF-8");
    let of_histograms = scrape.lines().filter(|line| !line.starts_with('#') && line.contains("_duration_seconds_"));
    let line = |line: &str| {
        let (series, value) = line.rsplit_once(' ').expect("a value");
        let (name, labels) = series.trim_end_matches('}').split_once('{').expect("labels");
        let label = |label: &str| match label.strip_prefix("le=\"").map(|le| le.trim_end_matches('"').parse::<f64>()) {
            Some(bound) => format!("le=\"{}\"", bound.expect("a number")),
            None => label.to_owned(),
        };
        let mut labels: Vec<String> = labels.split(',').map(label).collect();
        labels.sort();
        format!("{name}{{{}}} {}", labels.join(","), value.parse::<f64>().expect("a number"))
    };
    let mut expected: Vec<String> = of_histograms.map(line).collect();
    let filled = expected.iter().filter(|line| !line.ends_with(" 0")).count();
    assert!(filled > 10 && expected.len() > 200, "{filled} of {} with values", expected.len());
    expected.sort();
    arrived.sort();
    assert_eq!(arrived, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn traces_arrive_at_the_end_at_the_latest() {
    let collector = Collector::default();
    let address = collector.serve(loopback(0), None).await;
    let exporter = exporter(address);
    let tracer = NackTracer::new(exporter.tracer(), 1.0);
    let nack = Nack { flags: 1, key: FrameKey::new(0xabc, 7), subtree_id: [0; 32] };
    let from = SocketAddrV6::new("fd10::2".parse().expect("an address"), 4000, 0, 0);
    let traced = tracer.begin().expect("every NACK is traced");
    tracer.end(traced, &nack, from, "miss");

    // None of these.
    assert!(NackTracer::new(exporter.tracer(), 0.0).begin().is_none());
    assert!(NackTracer::default().begin().is_none());

    shut_down(exporter).await;
    let spans = collector.spans();
    assert_eq!(spans.len(), 1, "{spans:?}");
    let span = &spans[0];
    assert_eq!(span.name, "nack");
    assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
    for (name, value) in [
        ("nack.hash_key", "0000000000000abc"),
        ("nack.seq_num", "7"),
        ("nack.proxied", "true"),
        ("client.address", "fd10::2"),
        ("nack.verdict", "miss"),
    ] {
        assert_eq!(text(&span.attributes, name), value, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_of_the_nacks_is_traced() {
    let collector = Collector::default();
    let exporter = exporter(collector.serve(loopback(0), None).await);
    let tracer = NackTracer::new(exporter.tracer(), 0.25);
    let traced = (0..10_000).filter(|_| tracer.begin().is_some()).count();
    assert!((2_000..3_000).contains(&traced), "{traced} of 10,000");
    shut_down(exporter).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_comes_late_is_sent_to_all_the_same() {
    let address = free_address();
    let exporter = exporter(address);
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let collector = Collector::default();
    collector.serve(address, None).await;
    collector.wait_for_metrics(1).await;
    shut_down(exporter).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_never_comes_holds_the_end_up_for_seconds_at_most() {
    let address = free_address();
    let exporter = exporter(address);
    let tracer = NackTracer::new(exporter.tracer(), 1.0);
    let nack = Nack { flags: 0, key: FrameKey::new(1, 1), subtree_id: [0; 32] };
    let from = SocketAddrV6::new(Ipv6Addr::LOCALHOST, 1, 0, 0);
    if let Some(traced) = tracer.begin() {
        tracer.end(traced, &nack, from, "silence");
    }
    let start = Instant::now();
    shut_down(exporter).await;
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
}

#[test]
fn without_an_endpoint_nothing_is_exported() {
    let config = |flags: &[&str]| {
        let args = ["retry-endpoint"].iter().chain(flags).map(Into::into);
        let settings = Settings::from_args_and_env(args, |_| None::<String>).expect("right settings");
        Config::from(&settings)
    };
    assert!(config(&["-trace-sampling=0.5"]).is_none());
    let some = config(&["-otlp-endpoint=[::1]:4317", "-otlp-interval=7s", "-instance=I"]).expect("it is set");
    let expected = ("[::1]:4317", Duration::from_secs(7), "I");
    assert_eq!((some.endpoint.as_str(), some.interval, some.instance.as_str()), expected);
}

/// Every snapshot has another number in it, in several places; every second one an upstream.
#[derive(Default)]
struct Numbered(AtomicU64);

impl Source for Numbered {
    fn snapshot(&self) -> Snapshot {
        let number = self.0.fetch_add(1, Ordering::SeqCst) + 1;
        let upstreams =
            if number % 2 == 1 { vec![Upstream { name: "up".to_owned(), ..Upstream::default() }] } else { vec![] };
        let mut snapshot = Snapshot { frames: number, upstreams, ..Snapshot::default() };
        snapshot.user.cache_hits = number;
        snapshot.user.adverts_sent = number;
        snapshot.kernel.passed_lease = number;
        snapshot
    }
}

/// Also when they come close together, as the last two may.
#[tokio::test(flavor = "multi_thread")]
async fn every_export_shows_one_snapshot_and_each_another() {
    let collector = Collector::default();
    let address = collector.serve(loopback(0), None).await;
    let exporter = Exporter::start(&config(address.to_string()), Arc::new(Numbered::default()));
    let exporter = exporter.expect("the endpoint is accepted");
    collector.wait_for_metrics(2).await;
    shut_down(exporter).await;

    let exports = collector.metrics();
    assert!(exports.len() > 2, "the last one did not arrive");
    for (number, export) in (1_u32..).zip(&exports) {
        let value = f64::from(number);
        assert_eq!(series(export, "bre_cache_size", ""), [(String::new(), value)]);
        assert_eq!(series(export, "bre_beacon_adverts_sent_total", ""), [(String::new(), value)]);
        assert!(series(export, "bre_cache_hits_total", "path").contains(&("user".to_owned(), value)));
        assert!(series(export, "bre_xdp_passed_total", "reason").contains(&("lease".to_owned(), value)));
        // One that is gone is not shown for ever.
        let upstreams = series(export, "bre_upstream_up", "upstream");
        assert_eq!(upstreams.len(), usize::from(number % 2 == 1), "{number}: {upstreams:?}");
    }
}
