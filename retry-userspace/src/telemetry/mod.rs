//! Logs: text for people on stderr, or JSON on stdout, one object a line, with the service's identity on each.

pub(crate) mod inventory;
mod json;
pub(crate) mod otlp;
mod push;
#[cfg(test)]
mod tests;
mod text;
pub(crate) mod trace;
mod watched;

use std::sync::{Arc, Mutex, PoisonError};

use tracing::{Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use crate::settings::{LogFormat, Settings, Telemetry};

/// What is logged, and how a line looks.
#[derive(Clone, Debug)]
pub struct Config {
    /// `instance`: our name on each line.
    pub instance: String,
    /// `log-format`.
    pub format: LogFormat,
    /// `log-level`: the level at the start.
    pub level: Level,
}

impl From<&Settings> for Config {
    fn from(settings: &Settings) -> Self {
        let Telemetry { instance, format, level, .. } = &settings.telemetry;
        Self { instance: instance.clone(), format: *format, level: *level }
    }
}

/// Name of the service in logs.
pub(crate) const SERVICE: &str = "retry-endpoint";

/// Changes the level of a running daemon. Clones change the same level.
#[derive(Clone, Debug)]
pub struct LogLevel {
    handle: reload::Handle<Targets, Registry>,
    /// The level to go back to from debug.
    usual: Arc<Mutex<Level>>,
}

/// Why a level was not set.
#[derive(Debug, thiserror::Error)]
pub enum LogLevelError {
    /// No such level.
    #[error("level {0}: trace, debug, info, warn, error is accepted")]
    Unknown(String),
    /// The logger is gone.
    #[error("the log level cannot be changed: {0}")]
    Reload(#[from] reload::Error),
}

impl LogLevel {
    /// Sets the level, one of the words of `log-level`, whatever their case.
    ///
    /// # Errors
    /// [`LogLevelError`]: no such word, or the logger is gone; the level stays.
    pub fn set(&self, level: &str) -> Result<(), LogLevelError> {
        let words = [Level::TRACE, Level::DEBUG, Level::INFO, Level::WARN, Level::ERROR];
        let parsed = words
            .into_iter()
            .find(|word| word.as_str().eq_ignore_ascii_case(level))
            .ok_or_else(|| LogLevelError::Unknown(level.escape_debug().to_string()))?;
        let mut usual = self.usual.lock().unwrap_or_else(PoisonError::into_inner);
        self.handle.modify(|filter| *filter = filter_of(parsed))?;
        *usual = parsed;
        drop(usual);
        tracing::warn!(to = parsed.as_str(), "log level set");
        Ok(())
    }

    /// From any level to debug, from debug back to the level before it, or to info when there was none.
    pub fn toggle_debug(&self) {
        let usual = *self.usual.lock().unwrap_or_else(PoisonError::into_inner);
        let back = if usual == Level::DEBUG { Level::INFO } else { usual };
        let mut now = Level::DEBUG;
        let toggled = self.handle.modify(|filter| {
            if filter.default_level() == Some(LevelFilter::DEBUG) {
                now = back;
            }
            *filter = filter_of(now);
        });
        match toggled {
            Ok(()) => tracing::warn!(to = now.as_str(), "log level toggled"),
            Err(error) => tracing::warn!(%error, "the log level cannot be changed"),
        }
    }
}

/// Libraries that tell of every relocation, handshake and packet at debug; also what their names begin.
const LIBRARIES: [&str; 11] = [
    "aya",
    "aya_obj",
    "h2",
    "hickory_proto",
    "hickory_resolver",
    "hyper",
    "opentelemetry",
    "redis",
    "rustls",
    "tonic",
    "tower",
];

/// Our own lines from `level` on; of libraries, warnings only. The Redis client warns at every attempt to reach a node that is
/// down: what it has to say is told by `store`, once for each change.
fn filter_of(level: Level) -> Targets {
    let library = level.min(Level::WARN);
    let targets = Targets::new().with_default(level).with_targets(LIBRARIES.map(|name| (name, library)));
    targets.with_target("redis", LevelFilter::OFF)
}

/// Starts logging; for `main`, once.
pub fn init(config: &Config) -> LogLevel {
    let (subscriber, level) = subscriber(config, std::io::stdout, std::io::stderr);
    if let Err(error) = subscriber.try_init() {
        tracing::warn!(%error, "logging was started before");
    }
    level
}

/// The whole logger, over any two streams, and the handle of its level.
fn subscriber<O, E>(config: &Config, out: O, err: E) -> (impl Subscriber + Send + Sync + use<O, E>, LogLevel)
where
    O: for<'a> MakeWriter<'a> + Send + Sync + 'static,
    E: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(filter_of(config.level));
    let layer: Box<dyn Layer<_> + Send + Sync> = match config.format {
        LogFormat::Text => tracing_subscriber::fmt::layer()
            .with_writer(err)
            .event_format(text::Identified::new(SERVICE, &config.instance))
            .boxed(),
        LogFormat::Json => json::Json::new(SERVICE, &config.instance, out).boxed(),
    };
    // The filter comes first: its handle names the registry itself.
    let subscriber = tracing_subscriber::registry().with(filter).with(layer);
    (subscriber, LogLevel { handle, usual: Arc::new(Mutex::new(config.level)) })
}
