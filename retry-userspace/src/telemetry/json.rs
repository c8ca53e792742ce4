//! One JSON object a line on stdout. The stock formatter has no place for fields that every line must carry.

use std::fmt;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// The layer; it knows who speaks.
pub(super) struct Json {
    service: &'static str,
    instance: String,
}

impl Json {
    pub(super) fn new(service: &'static str, instance: &str) -> Self {
        Self { service, instance: instance.to_owned() }
    }

    fn line(&self, event: &Event<'_>, at: SystemTime) -> String {
        let mut fields = Fields(Map::new());
        let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        fields.0.insert("time_unix".into(), seconds.into());
        fields.0.insert("level".into(), event.metadata().level().as_str().into());
        fields.0.insert("target".into(), event.metadata().target().into());
        fields.0.insert("service.name".into(), self.service.into());
        fields.0.insert("service.instance.id".into(), self.instance.as_str().into());
        fields.0.insert("service.version".into(), env!("CARGO_PKG_VERSION").into());
        event.record(&mut fields);
        Value::Object(fields.0).to_string()
    }
}

impl<S: Subscriber> Layer<S> for Json {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let line = self.line(event, SystemTime::now());
        // When stdout is gone there is nowhere left to tell.
        let _ = writeln!(std::io::stdout().lock(), "{line}");
    }
}

struct Fields(Map<String, Value>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}
