//! The store that instances share: Redis. One server, a Redis or Valkey Cluster, or a master behind Sentinels; with TLS.
//!
//! The data path never waits for it: what is written or told is queued (`writer`, `announce`), what is asked is
//! awaited by tasks, at most for as long as it is of use. `link` holds the connection and finds the next one when it
//! breaks. Keys: `bre:frame:`, `bre:dedup:` and `bre:proxy:`, then the 16 bytes of the frame's key.

mod announce;
mod claims;
mod fault;
mod link;
mod target;
mod writer;

use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redis::Value;
use retry_common::counter::Counter;
use retry_common::key::FrameKey;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::counters::UserCounters;
use crate::dedup;
use crate::settings::{Backend, Redis, Settings};
use announce::Announcer;
use link::Link;
use target::Target;
use writer::Writer;

pub use claims::Claim;

/// A listener waits 300 ms for the first answer (docs/wire-format.md): what the store says later is of no use to it.
const LISTENERS_PATIENCE: Duration = Duration::from_millis(250);

/// What the store is used for.
#[derive(Clone, Debug)]
pub struct Config {
    /// How Redis is reached.
    pub redis: Redis,
    /// `instance`: our name in claims and announcements.
    pub instance: String,
    /// `-cache-backend redis`: frames are written and fetched. Without it the store serves dedup alone.
    pub keep_frames: bool,
    /// `-dedup-mode eventual`: other instances' repairs are listened for.
    pub announces: bool,
    /// `dedup-window`: life of the claim of a repair. Zero: there are no claims.
    pub dedup_window: Duration,
    /// How long another instance's claim counts, never longer than the window.
    pub repeat_after: Duration,
    /// `proxy-dedup-window`: life of the claim of a recovery.
    pub recovery_window: Duration,
}

impl Config {
    /// As the settings ask; `None` without `-redis-addr`.
    #[must_use]
    pub fn from(settings: &Settings) -> Option<Self> {
        if settings.redis.nodes.is_empty() {
            return None;
        }
        let dedup = dedup::Config::from(settings);
        Some(Self {
            redis: settings.redis.clone(),
            instance: settings.telemetry.instance.clone(),
            keep_frames: settings.cache.backend == Backend::Redis,
            announces: dedup.announces(),
            dedup_window: dedup.window,
            repeat_after: dedup.repeat_after,
            recovery_window: settings.proxy.dedup_window,
        })
    }
}

/// Settings of the store that cannot stand.
#[derive(Debug, Error)]
pub enum StoreError {
    /// A file of `-redis-tls-*` cannot be read.
    #[error("-{setting} {path}: a readable file in PEM is accepted: {source}")]
    File {
        /// The setting.
        setting: &'static str,
        /// The file.
        path: String,
        /// The system's words.
        source: std::io::Error,
    },
    /// The client library refuses the address or the certificates.
    #[error("-redis-addr: {0}")]
    Client(String),
}

/// Connects once and asks whether the server answers: its address.
///
/// # Errors
/// Settings that cannot stand, or what the client library or the server says.
pub(crate) async fn reach(config: &Config) -> Result<String, String> {
    let target = Target::new(&config.redis).map_err(|error| error.to_string())?;
    let answer = async { target.connect().await?.send(&redis::cmd("PING")).await };
    answer.await.map_err(|error| format!("{}: {error}", target.address()))?;
    Ok(target.address())
}

/// A frame of the store.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Stored {
    /// The datagram.
    pub bytes: Bytes,
    /// What is left of its life.
    pub life: Duration,
}

/// Why the store has no answer. It is counted where it arises, and logged when the state of the connection changes.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum Unavailable {
    /// There is no connection.
    #[error("not connected")]
    NotConnected,
    /// Too many failures in a row: it is left alone for a while.
    #[error("the circuit breaker is open")]
    BreakerOpen,
    /// No answer in time.
    #[error("no answer in time")]
    Late,
    /// It answered with an error.
    #[error("it answered with an error")]
    Failed,
}

/// A server behind the store.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Node {
    /// Host and port.
    pub address: String,
    /// `master` or `replica`.
    pub role: String,
    /// `connected`, `disconnected`, or `failed` when the cluster has given it up.
    pub link: String,
    /// Its id, in a cluster.
    pub id: Option<String>,
    /// The id of its master, for a replica in a cluster.
    pub master: Option<String>,
    /// First and last of each range of hash slots that it serves.
    pub slots: Vec<(u16, u16)>,
}

/// How the store does.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Status {
    /// There is a connection.
    pub connected: bool,
    /// It is left alone after failures.
    pub breaker_open: bool,
    /// Frames that wait to be written.
    pub queued: usize,
}

/// A handle. Clones are the same store.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    config: Config,
    link: Arc<Link>,
    writer: Writer,
    announcer: Announcer,
    counters: Arc<UserCounters>,
}

impl Store {
    /// Starts its tasks on the current runtime. Redis that cannot be reached is no error: it is tried again until `cancel`.
    /// `on_repair` is told of every multicast repair that another instance announced, and its age.
    ///
    /// # Errors
    /// [`StoreError`]: a file that cannot be read, an address or a certificate that the client refuses.
    pub fn start(
        config: Config,
        counters: Arc<UserCounters>,
        on_repair: impl Fn(FrameKey, Duration) + Send + Sync + 'static,
        cancel: CancellationToken,
    ) -> Result<Self, StoreError> {
        let target = Arc::new(Target::new(&config.redis)?);
        let link = Link::start(Arc::clone(&target), &config.redis, cancel.clone());
        let writer = Writer::start(Arc::clone(&link), config.redis.op_timeout, Arc::clone(&counters), cancel.clone());
        let announcer = Announcer::start(&config, Arc::clone(&link), Arc::clone(&counters), cancel.clone());
        if config.announces && !config.dedup_window.is_zero() {
            let listener = announce::Listener {
                target,
                instance: config.instance.clone(),
                limit: config.redis.op_timeout,
                oldest: config.repeat_after,
                counters: Arc::clone(&counters),
                on_repair: Box::new(on_repair),
            };
            tokio::spawn(listener.run(config.redis.clone(), cancel));
        }
        Ok(Self(Arc::new(Inner { config, link, writer, announcer, counters })))
    }

    /// The frame of `key` and what is left of its life.
    ///
    /// # Errors
    /// [`Unavailable`], within `cache-op-timeout` and a listener's patience.
    pub async fn fetch(&self, key: &FrameKey) -> Result<Option<Stored>, Unavailable> {
        if !self.0.config.keep_frames {
            return Ok(None);
        }
        let name = frame_name(key);
        let (mut get, mut left) = (redis::cmd("GET"), redis::cmd("PTTL"));
        get.arg(&name);
        left.arg(&name);
        let answers = self.ask_all([&get, &left]).await?;
        let Ok([Value::BulkString(bytes), Value::Int(left)]) = <[Value; 2]>::try_from(answers) else {
            return Ok(None);
        };
        // −1 has no end and is none of ours, −2 is gone; the Go program writes whole seconds.
        let Ok(left) = u64::try_from(left) else {
            return Ok(None);
        };
        Ok(Some(Stored { bytes: bytes.into(), life: Duration::from_millis(left) }))
    }

    /// Queues a frame to be written; never waits. Any thread may call it.
    pub fn write(&self, key: FrameKey, life: Duration, bytes: &[u8]) {
        if self.0.config.keep_frames {
            self.0.writer.queue(key, life, bytes);
        }
    }

    /// Removes a frame; true when it was there.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn delete(&self, key: &FrameKey) -> Result<bool, Unavailable> {
        let mut del = redis::cmd("DEL");
        del.arg(frame_name(key));
        Ok(self.ask(&del).await? == Value::Int(1))
    }

    /// Queues a multicast repair of ours to be told to the other instances; never waits.
    pub fn announce(&self, key: FrameKey) {
        if !self.0.config.dedup_window.is_zero() {
            self.0.announcer.queue(key);
        }
    }

    /// The servers behind the store.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn nodes(&self) -> Result<Vec<Node>, Unavailable> {
        self.0.link.nodes().await.inspect_err(|_| self.0.counters.one(Counter::CacheErrors))
    }

    /// Why there is no connection, or what the server refuses; `None` while all is well.
    #[must_use]
    pub fn why(&self) -> Option<String> {
        self.0.link.why()
    }

    /// How it does.
    pub fn status(&self) -> Status {
        Status {
            connected: self.0.link.is_connected(),
            breaker_open: self.0.link.is_open(),
            queued: self.0.writer.queued(),
        }
    }

    /// One command, within a listener's patience.
    async fn ask(&self, command: &redis::Cmd) -> Result<Value, Unavailable> {
        self.0.link.ask(command, self.limit()).await.inspect_err(|_| self.0.counters.one(Counter::CacheErrors))
    }

    /// Commands that are one operation, pipelined.
    async fn ask_all<const N: usize>(&self, commands: [&redis::Cmd; N]) -> Result<Vec<Value>, Unavailable> {
        let answers = self.0.link.ask_all(commands, self.limit()).await;
        answers.inspect_err(|_| self.0.counters.one(Counter::CacheErrors))
    }

    fn limit(&self) -> Duration {
        self.0.config.redis.op_timeout.min(LISTENERS_PATIENCE)
    }
}

fn name(prefix: &[u8], key: &FrameKey) -> Vec<u8> {
    [prefix, &key.to_bytes()].concat()
}

fn frame_name(key: &FrameKey) -> Vec<u8> {
    name(b"bre:frame:", key)
}

fn dedup_name(key: &FrameKey) -> Vec<u8> {
    name(b"bre:dedup:", key)
}

fn recovery_name(key: &FrameKey, asker: Option<Ipv6Addr>) -> Vec<u8> {
    let mut name = name(b"bre:proxy:", key);
    name.extend(asker.iter().flat_map(Ipv6Addr::octets));
    name
}
