//! One JSON object a line. The stock formatter has no place for fields that every line must carry.

use std::fmt;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::Context;

/// The layer; it knows who speaks.
pub(super) struct Json<W> {
    service: &'static str,
    instance: String,
    writer: W,
}

impl<W> Json<W> {
    pub(super) fn new(service: &'static str, instance: &str, writer: W) -> Self {
        Self { service, instance: instance.to_owned(), writer }
    }

    fn line(&self, event: &Event<'_>, at: SystemTime) -> String {
        let mut fields = Fields(Map::new());
        event.record(&mut fields);
        // Lines of the `log` crate, the kernel program's among them, bring their origin as fields.
        let origin = fields.0.remove("log.target");
        for detail in ["log.module_path", "log.file", "log.line"] {
            fields.0.remove(detail);
        }
        let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let identity: [(&str, Value); 6] = [
            ("time_unix", seconds.into()),
            ("level", event.metadata().level().as_str().into()),
            ("target", origin.unwrap_or_else(|| event.metadata().target().into())),
            ("service.name", self.service.into()),
            ("service.instance.id", self.instance.as_str().into()),
            ("service.version", env!("CARGO_PKG_VERSION").into()),
        ];
        for (name, value) in identity {
            // An event's own field of that name is told beside it, not instead of it.
            if let Some(own) = fields.0.insert(name.to_owned(), value) {
                fields.0.insert(format!("field.{name}"), own);
            }
        }
        Value::Object(fields.0).to_string()
    }
}

impl<S: Subscriber, W: for<'a> MakeWriter<'a> + 'static> Layer<S> for Json<W> {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut line = self.line(event, SystemTime::now());
        line.push('\n');
        // One write a line, so that lines of several threads do not mix. When it fails there is nowhere left to tell.
        let _ = self.writer.make_writer().write_all(line.as_bytes());
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
