//! Serves NACKs that the kernel program did not answer: the engine decides, and the server carries out its verdict.
//!
//! * [`socket`](Server::serve_socket): NACKs from the socket of the NACK port
//! * [`events`](Server::serve_events): NACKs from the kernel's event ring
//! * `answer`: [`Server`], which carries out a verdict
//! * [`pending`]: where a NACK waits for the shared store or a repair for its claim, and holds no worker up
//! * [`replies`](Server::serve_replies): goes on when a wait has ended
//!
//! `socket`, `events` and `replies` call `answer`, and `answer` calls `pending`; nothing calls back.

mod answer;
mod events;
pub(crate) mod pending;
mod replies;
mod socket;

use std::time::Duration;

pub(crate) use answer::Server;

use crate::dedup;
use crate::settings::Settings;

/// How long a shutdown may go unseen.
const PATIENCE: Duration = Duration::from_millis(100);

/// How NACKs are served.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    /// `nack-workers`: threads of the NACK socket.
    pub workers: usize,
    /// `-dedup-mode strict`: no multicast repair without a claim.
    pub strict: bool,
    /// Instances are told of our multicast repairs (`-dedup-mode eventual`).
    pub announces: bool,
}

impl From<&Settings> for Config {
    fn from(settings: &Settings) -> Self {
        let dedup = dedup::Config::from(settings);
        Self { workers: settings.nack.workers, strict: dedup.is_strict(), announces: dedup.announces() }
    }
}
