//! Redis that answers, and says no: what is refused is lost and counted, and what is not refused goes on.

use std::io::Write;
use std::sync::{Arc, Mutex};

use retry_common::counter::Counter;
use retry_common::key::FrameKey;
use retry_testbed::peers::redis::{PORT, Server};
use retry_testbed::scene::is_root;
use retry_userspace::parts::store::Unavailable;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::certificates::Files;
use super::scene::{MINUTE, bytes, config, connected, fabric, host, keeps, on, redis, start_with, until};

const KEY: FrameKey = FrameKey::new(0xfeed, 7);
const FLOW: u64 = 2;

/// What is logged on one thread.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Redis that is full refuses to write, and reads as before.
#[test]
fn a_full_one_is_still_read_from() {
    if !is_root("a_full_one_is_still_read_from") {
        return;
    }
    let fabric = fabric(&["redis"]);
    let server = Server::start(host(&fabric, "redis")).expect("Redis");
    on(host(&fabric, "store"), async {
        let url = format!("redis://{}", server.address());
        let started = connected(config(redis(&[&url]), "a")).await;
        keeps(&started, KEY).await;
        let full = redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(1).clone();
        let _: redis::Value = server.run(&full).expect("an answer");
        for seq in 0..1_000 {
            started.store.write(FrameKey::new(FLOW, seq), MINUTE, &bytes(KEY));
            if seq % 100 == 0 {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                assert!(matches!(started.store.fetch(&KEY).await, Ok(Some(_))), "{:?}", started.store.status());
            }
        }
        until("nothing waits", || started.store.status().queued == 0).await;
        let counted = started.counters.snapshot();
        assert_eq!(counted.get(Counter::StoreWriteFailed), 1_000);
        assert!(!started.store.status().breaker_open);

        let room = redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(0).clone();
        let _: redis::Value = server.run(&room).expect("an answer");
        keeps(&started, FrameKey::new(FLOW, 1)).await;
    });
}

/// A user who may connect and read, and not write.
#[test]
fn a_user_who_may_not_write_still_reads() {
    if !is_root("a_user_who_may_not_write_still_reads") {
        return;
    }
    let fabric = fabric(&["redis"]);
    let acl = ["--user", "reader", "on", ">word", "~bre:*", "&bre:*", "+@read", "+@connection"];
    let server = Server::start_with(host(&fabric, "redis"), PORT, Some("secret"), &acl).expect("Redis");
    let address = server.address();
    on(host(&fabric, "store"), async {
        let writer = connected(config(redis(&[&format!("redis://:secret@{address}")]), "a")).await;
        keeps(&writer, KEY).await;
        let reader = connected(config(redis(&[&format!("redis://reader:word@{address}")]), "b")).await;
        for seq in 0..100 {
            reader.store.write(FrameKey::new(FLOW, seq), MINUTE, &bytes(KEY));
        }
        until("nothing waits", || reader.store.status().queued == 0).await;
        assert_eq!(reader.counters.snapshot().get(Counter::StoreWriteFailed), 100);
        assert!(matches!(reader.store.fetch(&KEY).await, Ok(Some(_))));
        assert_eq!(reader.store.claim_repair(&KEY).await, Err(Unavailable::Failed));
        assert!(!reader.store.status().breaker_open);
        assert_eq!(server.frame(FrameKey::new(FLOW, 1)).expect("an answer"), None);
    });
}

/// An operator is told what to mend, once, and without the password.
#[test]
fn a_refusal_is_told_once() {
    if !is_root("a_refusal_is_told_once") {
        return;
    }
    let fabric = fabric(&["redis"]);
    let acl = ["--user", "reader", "on", ">pass-word", "~bre:*", "&bre:*", "+@read", "+@connection"];
    let server = Server::start_with(host(&fabric, "redis"), PORT, None, &acl).expect("Redis");
    let lines = Lines::default();
    let writer = lines.clone();
    host(&fabric, "store").ns.enter(|| {
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone());
        let _until_its_end = log.with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG).finish().set_default();
        // One thread, so that all that is logged is logged there.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let url = format!("redis://reader:pass-word@{}", server.address());
            let started = connected(config(redis(&[&url]), "a")).await;
            for seq in 0..20 {
                started.store.write(FrameKey::new(FLOW, seq), MINUTE, &bytes(KEY));
                assert_eq!(started.store.claim_repair(&KEY).await, Err(Unavailable::Failed));
            }
            until("nothing waits", || started.store.status().queued == 0).await;
        });
    });
    let text = String::from_utf8(lines.0.lock().expect("no panic").clone()).expect("UTF-8");
    let warnings: Vec<&str> = text.lines().filter(|line| line.contains("WARN")).collect();
    // Of its commands, and of the channel that it listens to.
    assert_eq!(warnings.len(), 2, "{text}");
    for said in ["refuses its user", "listen to bre:repairs"] {
        assert!(warnings.iter().any(|line| line.contains("-redis-addr") && line.contains(said)), "{said}: {text}");
    }
    assert!(!text.contains("pass-word"), "{text}");
}

/// Why there is no connection is in the log and in what the members are told with: a password that is missing, an authority
/// that we do not know, a certificate that is asked for.
#[test]
fn the_cause_of_a_refusal_is_told() {
    if !is_root("the_cause_of_a_refusal_is_told") {
        return;
    }
    let fabric = fabric(&["redis"]);
    let place = host(&fabric, "redis");
    let files = Files::new(place.addr.into());
    let cases =
        [("redis", false, "NOAUTH"), ("rediss", false, "UnknownIssuer"), ("rediss", true, "CertificateRequired")];
    for (scheme, knows_authority, cause) in cases {
        let server = if scheme == "rediss" {
            files.server(place, true)
        } else {
            Server::start_with(place, PORT, Some("pass-word"), &[]).expect("Redis")
        };
        let lines = Lines::default();
        let writer = lines.clone();
        host(&fabric, "store").ns.enter(|| {
            let log = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone());
            let _until_its_end =
                log.with_max_level(tracing_subscriber::filter::LevelFilter::INFO).finish().set_default();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let url = format!("{scheme}://{}", server.address());
                let mut settings = redis(&[&url]);
                settings.tls_ca = knows_authority.then(|| files.path("ca.pem"));
                let refused = start_with(config(settings, "a"), |_, _| {});
                until(cause, || refused.store.why().is_some_and(|why| why.contains(cause))).await;
                assert!(!refused.store.status().connected);
                tokio::time::sleep(std::time::Duration::from_secs(2)).await;
            });
        });
        let text = String::from_utf8(lines.0.lock().expect("no panic").clone()).expect("UTF-8");
        let told: Vec<&str> = text.lines().filter(|line| line.contains("WARN")).collect();
        assert!(told.len() == 1 && told[0].contains("-redis-addr") && told[0].contains(cause), "{cause}: {text}");
        assert!(!text.contains("connected to the shared store"), "{text}");
    }
}

/// A fetch is one operation, whatever it takes.
#[test]
fn what_fails_once_is_counted_once() {
    if !is_root("what_fails_once_is_counted_once") {
        return;
    }
    let fabric = fabric(&["redis"]);
    let server = Server::start(host(&fabric, "redis")).expect("Redis");
    on(host(&fabric, "store"), async {
        let url = format!("redis://{}", server.address());
        let mut settings = redis(&[&url]);
        settings.retry.breaker = 2;
        let started = connected(config(settings, "a")).await;
        keeps(&started, KEY).await;
        let before = started.counters.snapshot().get(Counter::CacheErrors);
        server.pause().expect("stopped");
        assert!(started.store.fetch(&KEY).await.is_err());
        assert!(!started.store.status().breaker_open, "one failure of two");
        assert_eq!(started.counters.snapshot().get(Counter::CacheErrors) - before, 1);
    });
}
