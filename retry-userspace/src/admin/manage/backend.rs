//! What the API shows and does, without HTTP.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use retry_common::key::FrameKey;
use retry_common::wire::frame::Class;

use crate::beacon::registry::Endpoint;
use crate::metrics::Snapshot;
use crate::settings::{Change, Described};

/// The daemon behind the API: frame log, shared store, run state.
pub trait Backend: Send + Sync {
    /// The frame of `key`: from the frame log, else from the shared store. `None` when neither has it.
    fn get(&self, key: FrameKey) -> BoxFuture<'_, Result<Option<StoredFrame>, BackendError>>;

    /// Stores the frame `bytes` for `life`, or for the life of its class. The caller has judged that they are a frame
    /// and that `key` is theirs.
    fn put(&self, key: FrameKey, bytes: Bytes, life: Option<Duration>) -> BoxFuture<'_, Result<PutOutcome, PutError>>;

    /// Takes the frame of `key` out, of the shared store too; false when there was none.
    fn delete(&self, key: FrameKey) -> BoxFuture<'_, Result<bool, BackendError>>;

    /// All numbers now.
    fn stats(&self) -> Snapshot;

    /// The settings in force, passwords masked.
    fn config(&self) -> Vec<Described>;

    /// Reads the files of settings again; or sets these values, by flag, until they are read again, and ends what was set so
    /// where there is no value.
    fn set_config(
        &self,
        values: Option<BTreeMap<String, Option<String>>>,
    ) -> BoxFuture<'_, Result<ConfigOutcome, ConfigRefused>>;

    /// Who else is there.
    fn members(&self) -> BoxFuture<'_, Members>;

    /// Begins to drain, and returns at once; false when the daemon drains already.
    fn drain(&self) -> bool;

    /// True from the order to drain, or the signal, to the end.
    fn is_draining(&self) -> bool;
}

/// A frame that was found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StoredFrame {
    /// The datagram.
    pub bytes: Bytes,
    /// What is left of its life.
    pub life_left: Duration,
    /// Its class.
    pub class: Class,
    /// Who had it.
    pub whence: Whence,
}

/// Who had a frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Whence {
    /// The frame log of this daemon.
    Log,
    /// The shared store.
    Redis,
}

impl Whence {
    /// Its word in the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Redis => "redis",
        }
    }
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PutOutcome {
    /// It is stored.
    Stored,
    /// It is stored in the place of other bytes of its key.
    Replaced,
    /// It was there, byte for byte: it and its life stay as they are.
    Duplicate,
}

impl PutOutcome {
    /// Its word in the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Replaced => "replaced",
            Self::Duplicate => "duplicate",
        }
    }
}

/// Why a frame was not stored.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PutError {
    /// This daemon does not keep such frames: why.
    #[error("{0}")]
    Refused(String),
    /// No record can hold it.
    #[error("no record of the frame log can hold it")]
    TooLarge,
    /// What it is stored in cannot be reached.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// What a change of settings came to.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ConfigOutcome {
    /// What has changed.
    pub changed: Vec<Change>,
    /// What the files have that needs a restart.
    pub waiting: Vec<Change>,
}

/// Why settings were not changed: one line.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigRefused(pub String);

/// What the daemon would ask cannot be reached: what, and why.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct BackendError(pub String);

/// This daemon, and those beside it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Members {
    /// `instance`: the name of this daemon; its id in beacons follows from it.
    pub instance: String,
    /// The endpoints heard by beacon, as `SharedRegistry::endpoints` has them.
    pub endpoints: Vec<Endpoint>,
    /// The servers of the shared store.
    pub redis: RedisMembers,
}

/// The servers of the shared store.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RedisMembers {
    /// There is no `-redis-addr`.
    NotConfigured,
    /// Those that it tells of.
    Nodes(Vec<RedisNode>),
    /// It does not answer: why.
    Unavailable(String),
}

/// One Redis server, in the words of `CLUSTER NODES` or `ROLE`.
#[derive(Clone, Debug, Eq, PartialEq, serde::Serialize)]
pub struct RedisNode {
    /// `host:port`.
    pub address: String,
    /// `master` or `replica`.
    pub role: String,
    /// `connected` or `disconnected`.
    pub link: String,
    /// Its node id, in a cluster.
    pub id: Option<String>,
    /// Node id of its master, for a replica in a cluster.
    pub master: Option<String>,
    /// First and last of each range of hash slots that it serves.
    pub slots: Vec<(u16, u16)>,
}
