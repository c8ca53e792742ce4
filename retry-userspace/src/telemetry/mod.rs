//! Logs: text for people on stderr, or JSON on stdout, one object a line, with the service's identity on each.

mod json;

use std::sync::{Arc, Mutex, PoisonError};

use tracing::Level;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use crate::settings::{LogFormat, Telemetry};

/// Name of the service in logs.
pub const SERVICE: &str = "retry-endpoint";

/// Changes the level of a running daemon.
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
    /// Sets the level.
    pub fn set(&self, level: &str) -> Result<(), LogLevelError> {
        let parsed: Level = level.parse().map_err(|_| LogLevelError::Unknown(level.to_owned()))?;
        *self.usual.lock().unwrap_or_else(PoisonError::into_inner) = parsed;
        self.handle.modify(|filter| *filter = filter_of(parsed))?;
        tracing::info!(level, "log level set");
        Ok(())
    }

    /// From any level to debug, from debug back.
    pub fn toggle_debug(&self) {
        let usual = *self.usual.lock().unwrap_or_else(PoisonError::into_inner);
        let toggled = self.handle.modify(|filter| {
            let back = if usual == Level::DEBUG { Level::INFO } else { usual };
            let is_debug = filter.default_level() == Some(LevelFilter::DEBUG);
            *filter = filter_of(if is_debug { back } else { Level::DEBUG });
        });
        match toggled {
            Ok(()) => tracing::warn!("SIGHUP: log level toggled"),
            Err(error) => tracing::warn!(%error, "SIGHUP: the log level cannot be changed"),
        }
    }
}

/// Our own lines from `level` on; of the loader's, which tells of every relocation at debug, warnings only.
fn filter_of(level: Level) -> Targets {
    let loader = level.min(Level::WARN);
    Targets::new()
        .with_default(level)
        .with_target("aya", loader)
        .with_target("aya_obj", loader)
        .with_target("hyper", loader)
}

/// Starts logging; for `main`, once.
pub fn init(settings: &Telemetry) -> LogLevel {
    let (filter, handle) = reload::Layer::new(filter_of(settings.level));
    let layer: Box<dyn Layer<_> + Send + Sync> = match settings.format {
        LogFormat::Text => tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false).boxed(),
        LogFormat::Json => json::Json::new(SERVICE, &settings.instance).boxed(),
    };
    // Both in one order: the filter's handle names the registry itself.
    if let Err(error) = tracing_subscriber::registry().with(filter).with(layer).try_init() {
        tracing::warn!(%error, "logging was started before");
    }
    LogLevel { handle, usual: Arc::new(Mutex::new(settings.level)) }
}
