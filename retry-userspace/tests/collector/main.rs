//! What arrives at an OpenTelemetry collector: a gRPC server with the published protobuf services, on the loopback.
#![expect(clippy::panic, reason = "a test says what it found")]

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use opentelemetry_proto::tonic::metrics::v1::{Metric, NumberDataPoint, metric::Data};
use opentelemetry_proto::tonic::trace::v1::Span;
use retry_common::key::FrameKey;
use retry_common::wire::nack::Nack;
use retry_userspace::admin::samples::{Kind, samples};
use retry_userspace::admin::{Snapshot, Source};
use retry_userspace::settings::Otlp;
use retry_userspace::telemetry::otlp::Exporter;
use retry_userspace::telemetry::trace::NackTracer;
use tonic::{Request, Response, Status};

const PATIENCE: Duration = Duration::from_secs(20);
const INSTANCE: &str = "an instance";

/// What came, in order.
#[derive(Clone, Default)]
struct Collector {
    metrics: Arc<Mutex<Vec<ExportMetricsServiceRequest>>>,
    traces: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.metrics.lock().unwrap_or_else(PoisonError::into_inner).push(request.into_inner());
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.traces.lock().unwrap_or_else(PoisonError::into_inner).push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Serves at `address` until the runtime ends, and returns where.
    async fn serve(&self, address: SocketAddr) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind(address).await.expect("a port of the loopback");
        let address = listener.local_addr().expect("bound");
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        let server = tonic::transport::Server::builder()
            .add_service(MetricsServiceServer::new(self.clone()))
            .add_service(TraceServiceServer::new(self.clone()))
            .serve_with_incoming(incoming);
        tokio::spawn(server);
        address
    }

    /// The last export of metrics, once there is one.
    async fn last_metrics(&self) -> ExportMetricsServiceRequest {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(last) = self.metrics.lock().unwrap_or_else(PoisonError::into_inner).last() {
                return last.clone();
            }
            assert!(Instant::now() < deadline, "no metrics arrived");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn spans(&self) -> Vec<Span> {
        let traces = self.traces.lock().unwrap_or_else(PoisonError::into_inner);
        let scopes = traces.iter().flat_map(|export| &export.resource_spans).flat_map(|one| &one.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }
}

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
    snapshot
}

fn settings(address: SocketAddr) -> Otlp {
    Otlp { endpoint: Some(format!("http://{address}")), interval: Duration::from_secs(1), sampling: 1.0 }
}

fn exporter(address: SocketAddr) -> Exporter {
    let source = Arc::new(Fixed(snapshot()));
    Exporter::start(&settings(address), INSTANCE, source).expect("the endpoint is accepted").expect("it is set")
}

async fn shut_down(exporter: Exporter) {
    tokio::task::spawn_blocking(move || exporter.shutdown()).await.expect("no panic");
}

fn text(attributes: &[KeyValue], name: &str) -> Option<String> {
    let value = attributes.iter().find(|one| one.key == name)?.value.clone()?;
    match value {
        AnyValue { value: Some(Value::StringValue(text)) } => Some(text),
        AnyValue { value: Some(Value::IntValue(number)) } => Some(number.to_string()),
        AnyValue { value: Some(Value::BoolValue(truth)) } => Some(truth.to_string()),
        AnyValue { value: other } => panic!("{name}: {other:?}"),
    }
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

fn loopback() -> SocketAddr {
    SocketAddr::from((Ipv6Addr::LOCALHOST, 0))
}

/// Every series of /metrics, under its name and labels, with its value; and who sends them.
#[tokio::test(flavor = "multi_thread")]
async fn metrics_arrive_as_they_are_scraped() {
    let collector = Collector::default();
    let address = collector.serve(loopback()).await;
    let exporter = exporter(address);
    let export = collector.last_metrics().await;

    let resource = export.resource_metrics[0].resource.as_ref().expect("a resource");
    assert_eq!(text(&resource.attributes, "service.name").as_deref(), Some("retry-endpoint"));
    assert_eq!(text(&resource.attributes, "service.instance.id").as_deref(), Some(INSTANCE));
    assert_eq!(text(&resource.attributes, "service.version").as_deref(), Some(env!("CARGO_PKG_VERSION")));

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
                && sample.labels.iter().all(|(name, value)| text(&point.attributes, name).as_ref() == Some(value))
        });
        let point = point.unwrap_or_else(|| panic!("{} {:?} did not arrive", sample.name, sample.labels));
        assert_eq!(point.value, Some(Number::AsDouble(sample.value)), "{} {:?}", sample.name, sample.labels);
    }
    let arrived: usize = metrics.iter().map(|metric| points(metric).1.len()).sum();
    assert_eq!(arrived, expected.len(), "series");
    shut_down(exporter).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn traces_arrive_at_the_end_at_the_latest() {
    let collector = Collector::default();
    let address = collector.serve(loopback()).await;
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
        assert_eq!(text(&span.attributes, name).as_deref(), Some(value), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_of_the_nacks_is_traced() {
    let collector = Collector::default();
    let exporter = exporter(collector.serve(loopback()).await);
    let tracer = NackTracer::new(exporter.tracer(), 0.25);
    let traced = (0..10_000).filter(|_| tracer.begin().is_some()).count();
    assert!((2_000..3_000).contains(&traced), "{traced} of 10,000");
    shut_down(exporter).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_comes_late_is_sent_to_all_the_same() {
    // A port that was free a moment ago.
    let address = {
        let listener = std::net::TcpListener::bind(loopback()).expect("a port");
        listener.local_addr().expect("bound")
    };
    let exporter = exporter(address);
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let collector = Collector::default();
    collector.serve(address).await;
    collector.last_metrics().await;
    shut_down(exporter).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_never_comes_holds_the_end_up_for_seconds_at_most() {
    let address = {
        let listener = std::net::TcpListener::bind(loopback()).expect("a port");
        listener.local_addr().expect("bound")
    };
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

#[tokio::test]
async fn without_an_endpoint_nothing_is_exported() {
    let none = Otlp { endpoint: None, interval: Duration::from_secs(30), sampling: 0.5 };
    let exporter = Exporter::start(&none, INSTANCE, Arc::new(Fixed(snapshot()))).expect("nothing to refuse");
    assert!(exporter.is_none());
}
