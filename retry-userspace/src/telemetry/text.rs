//! A line for people, with the service's identity behind what it says. Always one line: what another program said may
//! hold line breaks, and what follows one would look like a line of ours.

use std::fmt;

use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The stock format, with who speaks at the end of each line.
pub(super) struct Identified {
    stock: Format<Full>,
    identity: String,
}

impl Identified {
    pub(super) fn new(service: &str, instance: &str) -> Self {
        // Debug form: an instance with spaces stays one word.
        let identity = format!(
            " service.name={service} service.instance.id={instance:?} service.version={}",
            env!("CARGO_PKG_VERSION")
        );
        Self { stock: Format::default().with_ansi(false), identity }
    }
}

impl<S, N> FormatEvent<S, N> for Identified
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = String::new();
        self.stock.format_event(context, Writer::new(&mut line), event)?;
        for c in line.trim_end_matches('\n').chars() {
            if c.is_control() { write!(writer, "{}", c.escape_default())? } else { writer.write_char(c)? }
        }
        writeln!(writer, "{}", self.identity)
    }
}
