//! The daemon and its collector: one that goes and comes back, hangs, or speaks TLS; and the last numbers of all.

use std::net::{Ipv6Addr, UdpSocket};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use retry_common::key::FrameKey;
use retry_common::wire::answer::Answer;
use retry_common::wire::nack::Nack;
use tonic::transport::Identity;

use crate::daemon::{Daemon, has_loopback};
use crate::server::{Collector, INSTANCE, SOON, free_address, loopback, resource, series, text};

/// Longest that a collector may hold up the end: its three seconds, and a machine that is busy.
const END: Duration = Duration::from_secs(12);
const LOST: &str = "exports do not arrive";
const BACK: &str = "exports arrive again";

/// A daemon that was asked once and ends before its first export: what it did is known all the same.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_sends_what_was_not_sent_yet() {
    if !has_loopback("the_end_sends_what_was_not_sent_yet") {
        return;
    }
    let collector = Collector::default();
    let address = collector.serve(loopback(0), None).await;
    let often = ["-otlp-interval=1h", "-trace-sampling=1"];
    let headers = [("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20token")];
    let mut daemon = Daemon::start(&address.to_string(), &often, &headers).await;
    let asker = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).expect("a port");
    asker.set_read_timeout(Some(SOON)).expect("an option");
    let nack = Nack { flags: 0, key: FrameKey::new(0xabc, 7), subtree_id: [0; 32] };
    asker.send_to(&nack.to_bytes(), daemon.nacks).expect("sent");
    let mut answer = [0; 64];
    let (len, _) = asker.recv_from(&mut answer).expect("an answer");
    assert_eq!(&answer[..len], &Answer::Miss.to_bytes()[..]);
    assert!(collector.metrics().is_empty(), "the interval is an hour");

    let (status, _) = daemon.end().await;
    assert!(status.success(), "{status}: {}", daemon.log());
    let exports = collector.metrics();
    let [export] = exports.as_slice() else { panic!("{} exports", exports.len()) };
    let who = ["service.name", "service.instance.id", "service.version"].map(|name| resource(export, name));
    assert_eq!(who, ["retry-endpoint", INSTANCE, env!("CARGO_PKG_VERSION")]);
    let requests = series(export, "bre_nack_requests_total", "path");
    assert!(requests.contains(&("user".to_owned(), 1.0)), "{requests:?}");
    assert_eq!(series(export, "bre_responses_sent_total", "type").iter().filter(|(_, value)| *value > 0.0).count(), 1);

    assert_eq!(collector.tokens(), ["Bearer token"; 2], "of metrics and traces");

    let spans = collector.spans();
    let [span] = spans.as_slice() else { panic!("{spans:?}") };
    assert_eq!(text(&span.attributes, "nack.hash_key"), "0000000000000abc");
    assert_eq!(text(&span.attributes, "nack.verdict"), "miss");
    assert_eq!(daemon.lines_with(LOST), 0, "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_goes_is_told_of_once_and_so_is_one_that_is_back() {
    if !has_loopback("a_collector_that_goes_is_told_of_once_and_so_is_one_that_is_back") {
        return;
    }
    let address = free_address();
    let mut daemon = Daemon::start(&format!("http://{address}"), &["-otlp-interval=1s"], &[]).await;
    daemon.says(LOST).await;
    // Three more that fail.
    tokio::time::sleep(Duration::from_millis(3_500)).await;
    assert_eq!(daemon.lines_with(LOST), 1, "{}", daemon.log());

    let collector = Collector::default();
    collector.serve(address, None).await;
    daemon.says(BACK).await;
    collector.wait_for_metrics(3).await;
    let (status, _) = daemon.end().await;
    assert!(status.success(), "{status}: {}", daemon.log());
    assert_eq!((daemon.lines_with(LOST), daemon.lines_with(BACK)), (1, 1), "{}", daemon.log());
}

/// It takes the connection and says nothing, ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_holds_the_end_up_for_seconds_at_most() {
    if !has_loopback("a_collector_that_hangs_holds_the_end_up_for_seconds_at_most") {
        return;
    }
    let deaf = std::net::TcpListener::bind(loopback(0)).expect("a port");
    let address = deaf.local_addr().expect("bound");
    let mut daemon = Daemon::start(&address.to_string(), &["-otlp-interval=1s"], &[]).await;
    daemon.says(LOST).await;
    let (status, took) = daemon.end().await;
    assert!(status.success(), "{status}: {}", daemon.log());
    assert!(took < END, "{took:?}");
    drop(deaf);
}

/// A certificate authority, and what it vouches for: the loopback.
struct Authority {
    pem: String,
    collector: Identity,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("signed");
        let issuer = Issuer::new(params, key);
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::IpAddress(Ipv6Addr::LOCALHOST.into())];
        let key = KeyPair::generate().expect("a key");
        let own = params.signed_by(&key, &issuer).expect("signed");
        Self { pem: certificate.pem(), collector: Identity::from_pem(own.pem(), key.serialize_pem()) }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_over_tls_is_held_against_the_systems_authorities() {
    if !has_loopback("a_collector_over_tls_is_held_against_the_systems_authorities") {
        return;
    }
    let (known, stranger) = (Authority::new(), Authority::new());
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), &known.pem).expect("written");
    let trusted = [("SSL_CERT_FILE", file.path().to_str().expect("UTF-8"))];

    let collector = Collector::default();
    let address = collector.serve(loopback(0), Some(known.collector)).await;
    let mut daemon = Daemon::start(&format!("https://{address}"), &["-otlp-interval=1s"], &trusted).await;
    let exports = collector.wait_for_metrics(1).await;
    assert_eq!(resource(&exports[0], "service.instance.id"), INSTANCE);
    assert!(daemon.end().await.0.success());
    assert_eq!(daemon.lines_with(LOST), 0, "{}", daemon.log());

    let collector = Collector::default();
    let address = collector.serve(loopback(0), Some(stranger.collector)).await;
    let mut daemon = Daemon::start(&format!("https://{address}"), &["-otlp-interval=1s"], &trusted).await;
    daemon.says(LOST).await;
    assert!(daemon.end().await.0.success());
    assert!(collector.metrics().is_empty(), "numbers for a stranger");
}
