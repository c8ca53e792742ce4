//! Traces of NACKs that the daemon handles. What XDP answers is not traced: no process outside the kernel hears of it.

use std::net::SocketAddrV6;
use std::time::SystemTime;

use opentelemetry::KeyValue;
use opentelemetry::trace::{Span, SpanBuilder, Tracer};
use opentelemetry_sdk::trace::SdkTracer;
use retry_common::wire::nack::Nack;

/// Traces the share of NACKs that `trace-sampling` asks for.
#[derive(Clone, Debug, Default)]
pub struct NackTracer(Option<(SdkTracer, f64)>);

/// A NACK that is traced.
#[derive(Clone, Copy, Debug)]
pub struct Traced {
    began: SystemTime,
}

impl NackTracer {
    /// Sends spans to `tracer` for this share of NACKs, 0 to 1.
    #[must_use]
    pub fn new(tracer: SdkTracer, share: f64) -> Self {
        Self((share > 0.0).then_some((tracer, share)))
    }

    /// Draws whether a NACK is traced: one random number, and nothing at all without `trace-sampling`.
    #[must_use]
    pub fn begin(&self) -> Option<Traced> {
        let (_, share) = self.0.as_ref()?;
        (rand::random::<f64>() < *share).then(|| Traced { began: SystemTime::now() })
    }

    /// Tells what became of it.
    pub fn end(&self, traced: Traced, nack: &Nack, from: SocketAddrV6, verdict: &'static str) {
        let Some((tracer, _)) = &self.0 else { return };
        let attributes = [
            KeyValue::new("nack.hash_key", format!("{:016x}", nack.key.hash_key())),
            KeyValue::new("nack.seq_num", i64::try_from(nack.key.seq_num()).unwrap_or(i64::MAX)),
            KeyValue::new("nack.proxied", nack.proxied()),
            KeyValue::new("client.address", from.ip().to_string()),
            KeyValue::new("nack.verdict", verdict),
        ];
        let builder = SpanBuilder::from_name("nack").with_start_time(traced.began).with_attributes(attributes);
        tracer.build(builder).end();
    }
}
