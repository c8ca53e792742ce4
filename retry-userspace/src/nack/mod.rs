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
pub mod pending;
mod replies;
mod socket;

use std::time::Duration;

pub use answer::Server;

/// How long a shutdown may go unseen.
const PATIENCE: Duration = Duration::from_millis(100);
