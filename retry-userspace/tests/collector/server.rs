//! The collector, and how what came is read.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::metrics::v1::NumberDataPoint;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use opentelemetry_proto::tonic::trace::v1::Span;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

/// Longest wait for what must come: a busy machine is not a failure.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// Name of the instance that exports.
pub(crate) const INSTANCE: &str = "an instance";

/// What came, in order. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Collector {
    metrics: Arc<Mutex<Vec<ExportMetricsServiceRequest>>>,
    traces: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
    tokens: Arc<Mutex<Vec<String>>>,
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.note_token(&request);
        self.metrics.lock().unwrap_or_else(PoisonError::into_inner).push(request.into_inner());
        Ok(Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.note_token(&request);
        self.traces.lock().unwrap_or_else(PoisonError::into_inner).push(request.into_inner());
        Ok(Response::new(Default::default()))
    }
}

impl Collector {
    /// Serves until the runtime ends, over TLS when it has an identity; returns its address.
    pub(crate) async fn serve(&self, address: SocketAddr, identity: Option<Identity>) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind(address).await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let mut server = Server::builder();
        if let Some(identity) = identity {
            server = server.tls_config(ServerTlsConfig::new().identity(identity)).expect("a certificate and its key");
        }
        let served = server
            .add_service(MetricsServiceServer::new(self.clone()))
            .add_service(TraceServiceServer::new(self.clone()))
            .serve_with_incoming(TcpIncoming::from(listener));
        tokio::spawn(served);
        address
    }

    fn note_token<T>(&self, request: &Request<T>) {
        if let Some(token) = request.metadata().get("authorization") {
            let token = token.to_str().expect("text").to_owned();
            self.tokens.lock().unwrap_or_else(PoisonError::into_inner).push(token);
        }
    }

    /// The header `authorization` of each export that had one.
    pub(crate) fn tokens(&self) -> Vec<String> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Exports of metrics so far.
    pub(crate) fn metrics(&self) -> Vec<ExportMetricsServiceRequest> {
        self.metrics.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The first `count` exports of metrics and what came with them.
    pub(crate) async fn wait_for_metrics(&self, count: usize) -> Vec<ExportMetricsServiceRequest> {
        let deadline = Instant::now() + SOON;
        while self.metrics().len() < count {
            assert!(Instant::now() < deadline, "{} exports of metrics instead of {count}", self.metrics().len());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.metrics()
    }

    /// All spans so far.
    pub(crate) fn spans(&self) -> Vec<Span> {
        let traces = self.traces.lock().unwrap_or_else(PoisonError::into_inner);
        let scopes = traces.iter().flat_map(|export| &export.resource_spans).flat_map(|one| &one.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }
}

/// The value of an attribute as text; empty when it is not there.
pub(crate) fn text(attributes: &[KeyValue], name: &str) -> String {
    let value = attributes.iter().find(|one| one.key == name).and_then(|one| one.value.clone()?.value);
    match value {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(truth)) => truth.to_string(),
        other => other.map(|value| format!("{value:?}")).unwrap_or_default(),
    }
}

/// An attribute of who sends the metrics.
pub(crate) fn resource(export: &ExportMetricsServiceRequest, name: &str) -> String {
    let resource = export.resource_metrics.first().and_then(|one| one.resource.as_ref());
    text(&resource.expect("a resource").attributes, name)
}

/// The value of each series of a metric, by the value of its label `label`, which may be none.
pub(crate) fn series(export: &ExportMetricsServiceRequest, name: &str, label: &str) -> Vec<(String, f64)> {
    let scopes = export.resource_metrics.iter().flat_map(|one| &one.scope_metrics);
    let metric = scopes.flat_map(|scope| &scope.metrics).find(|metric| metric.name == name);
    let points: &[NumberDataPoint] = match metric.and_then(|metric| metric.data.as_ref()) {
        Some(Data::Sum(sum)) => &sum.data_points,
        Some(Data::Gauge(gauge)) => &gauge.data_points,
        Some(_) | None => &[],
    };
    let value = |point: &NumberDataPoint| match point.value {
        Some(Number::AsDouble(value)) => value,
        Some(Number::AsInt(_)) | None => f64::NAN,
    };
    points.iter().map(|point| (text(&point.attributes, label), value(point))).collect()
}

/// An address on the loopback.
pub(crate) fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port)
}

/// An address on the loopback that was free a moment ago.
pub(crate) fn free_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind(loopback(0)).expect("a port");
    listener.local_addr().expect("bound")
}
