//! What a listener sees of an installed endpoint: a frame that was published, and the answers to NACKs for it.

use std::net::{SocketAddr, SocketAddrV6, UdpSocket};
use std::sync::Arc;

use retry_common::key::FrameKey;
use retry_testbed::daemon::{METRICS, Metrics, http};
use retry_testbed::net::fabric::Host;
use retry_testbed::peers::answer::{Answer, nack};
use retry_testbed::peers::frames::{Flow, Kind};
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{ask, asker, eventually};

/// A listener and the frame that it asks for.
pub(crate) struct Listener<'a> {
    endpoint: &'a Host,
    socket: UdpSocket,
    to: SocketAddrV6,
    key: FrameKey,
}

impl<'a> Listener<'a> {
    /// Publishes a frame from the client's host and waits until the endpoint, in native mode, has it.
    pub(crate) fn of_a_new_frame(endpoint: &'a Host, client: &Host) -> Self {
        let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
        let key = publish.publish(&mut Flow::new(Kind::Tx, 0, 2, 400..=400)).expect("a frame leaves").expect("a key");
        let listener = Self { endpoint, socket: asker(client), to: endpoint.nack_address(), key };
        assert_eq!(listener.metrics().state("bre_xdp_mode", "mode").as_deref(), Some("native"));
        eventually("the frame is cached", || listener.metrics().count("bre_frames_cached_total", &[]) > 0);
        listener
    }

    /// Whether a NACK for the frame gets an ACK.
    pub(crate) fn is_answered(&self) -> bool {
        let answers = ask(&self.socket, self.to, &nack(self.key), 1);
        answers.iter().any(|bytes| matches!(Answer::parse(bytes, self.key.seq_num()), Ok(Answer::Ack { .. })))
    }

    /// Fails unless the kernel program answers it.
    #[track_caller]
    pub(crate) fn is_answered_by_the_kernel(&self) {
        let count = || self.metrics().count("bre_nack_requests_total", &[("path", "xdp")]);
        let before = count();
        assert!(self.is_answered(), "no ACK");
        assert_eq!(count(), before + 1, "the daemon's socket answered");
    }

    /// The endpoint's numbers.
    pub(crate) fn metrics(&self) -> Metrics {
        let address: SocketAddr = METRICS.parse().expect("an address");
        let (_, text) = http::get(&self.endpoint.ns, address, "/metrics").expect("a scrape");
        Metrics::parse(&text)
    }
}
