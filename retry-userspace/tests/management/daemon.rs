//! A daemon for the API: a real frame log, and the rest made up.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use futures_util::future::BoxFuture;
use nix::time::{ClockId, clock_gettime};
use retry_common::counter::Counters;
use retry_common::group::{BeefBits, ShardBits, Sharding};
use retry_common::key::FrameKey;
use retry_common::wire::PROTO_VER;
use retry_common::wire::advert;
use retry_common::wire::frame::{Class, Frame, Head, Version};
use retry_userspace::parts::admin::manage::{
    Backend, BackendError, ConfigOutcome, ConfigRefused, Members, PutError, PutOutcome, RedisMembers, RedisNode,
    StoredFrame, Whence,
};
use retry_userspace::parts::admin::status::{Details, StatusSource};
use retry_userspace::parts::beacon::registry::Endpoint;
use retry_userspace::parts::framelog::{Log, NewFrame, Pages, Put, Removed, Sizes, Writer, open};
use retry_userspace::parts::metrics::{Snapshot, Source};
use retry_userspace::parts::settings::{self, Change, Described, Settings};
use tokio::sync::Semaphore;

/// Nanoseconds of the monotonic clock, by which the frame log counts lives.
fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("a clock");
    u64::try_from(Duration::from(now).as_nanos()).expect("centuries")
}

/// Life of every class here.
pub(crate) const LIFE_MS: u32 = 60_000;

/// A daemon that is a frame log; who else is there is made up.
pub(crate) struct OverLog {
    pub(crate) log: Log,
    writer: Mutex<Writer>,
    pub(crate) draining: AtomicBool,
    /// How often a request asked whether the daemon drains.
    pub(crate) asked_draining: AtomicUsize,
    /// Requests for the members are answered while it has a permit.
    pub(crate) gate: Semaphore,
    /// How many of them came.
    pub(crate) asked_members: AtomicUsize,
    /// The shared store is down.
    pub(crate) store_down: AtomicBool,
    pub(crate) redis: Mutex<RedisMembers>,
    /// What the status page shows in place of the log's numbers.
    pub(crate) shown: Mutex<Option<(Snapshot, Details)>>,
}

impl OverLog {
    pub(crate) fn new() -> Self {
        let (writer, log) = open(Arc::new(Pages::plain(Sizes::new(1, 1)).expect("memory")), 7, 0);
        Self {
            log,
            writer: Mutex::new(writer),
            draining: AtomicBool::new(false),
            asked_draining: AtomicUsize::new(0),
            gate: Semaphore::new(1),
            asked_members: AtomicUsize::new(0),
            store_down: AtomicBool::new(false),
            redis: Mutex::new(RedisMembers::Nodes(vec![RedisNode {
                address: "[fd10::1]:6379".into(),
                role: "replica".into(),
                link: "connected".into(),
                id: Some("07c3".into()),
                master: Some("292f".into()),
                slots: vec![(0, 5_460)],
            }])),
            shown: Mutex::default(),
        }
    }

    fn store_is_up(&self) -> Result<(), BackendError> {
        match self.store_down.load(Ordering::SeqCst) {
            true => Err(BackendError("redis: connection refused".into())),
            false => Ok(()),
        }
    }

    fn read(&self, key: FrameKey) -> Option<StoredFrame> {
        let now_ns = monotonic_ns();
        let record = self.log.look_up(&key, now_ns)?;
        let mut bytes = Vec::new();
        self.log.copy(&record, &mut bytes).then(|| StoredFrame {
            bytes: bytes.into(),
            life_left: Duration::from_nanos(record.header().expires_ns - now_ns),
            class: Class::from_u8(record.header().class).expect("a class"),
            whence: Whence::Log,
        })
    }
}

impl Backend for OverLog {
    fn get(&self, key: FrameKey) -> BoxFuture<'_, Result<Option<StoredFrame>, BackendError>> {
        Box::pin(async move {
            let frame = self.read(key);
            if frame.is_none() {
                self.store_is_up()?;
            }
            Ok(frame)
        })
    }

    fn put(&self, key: FrameKey, bytes: Bytes, life: Option<Duration>) -> BoxFuture<'_, Result<PutOutcome, PutError>> {
        Box::pin(async move {
            self.store_is_up()?;
            let head = *Frame::parse(&bytes).expect("the router has judged it").head();
            let class = head.class().expect("the router has judged it");
            if class == Class::Beef {
                return Err(PutError::Refused("this daemon keeps no BEEF".into()));
            }
            let sharding = Sharding { shard: ShardBits::new(2).expect("in range"), beef: BeefBits::default() };
            let group = head.group_index(&sharding).expect("it has a class");
            let life_ms = life.map_or(LIFE_MS, |life| u32::try_from(life.as_millis()).expect("the router bounds it"));
            let frame = NewFrame { key, class, group, life_ms, daemon_only: false, bytes: &bytes };
            match self.writer.lock().expect("no panic").put(&frame, monotonic_ns(), |_| {}) {
                Put::Stored => Ok(PutOutcome::Stored),
                Put::Replaced => Ok(PutOutcome::Replaced),
                Put::Duplicate => Ok(PutOutcome::Duplicate),
                Put::TooLarge => Err(PutError::TooLarge),
                Put::Conflict => panic!("an operator's frame is the newest"),
                Put::Busy => panic!("no kernel writes here"),
            }
        })
    }

    fn delete(&self, key: FrameKey) -> BoxFuture<'_, Result<bool, BackendError>> {
        Box::pin(async move {
            let was_there = self.writer.lock().expect("no panic").remove(&key, monotonic_ns(), |_| {});
            self.store_is_up()?;
            Ok(was_there == Removed::Yes)
        })
    }

    fn stats(&self) -> Snapshot {
        let writer = self.writer.lock().expect("no panic");
        Snapshot {
            kernel: Counters { cache_hits: 5, ..Counters::default() },
            frames: writer.live(),
            lanes: writer.lane_use(monotonic_ns()),
            xdp_mode: "off",
            xdp_why: "-xdp off".into(),
            workers_ready: 2,
            workers_total: 2,
            draining: self.draining.load(Ordering::SeqCst),
            ..Snapshot::default()
        }
    }

    fn config(&self) -> Vec<Described> {
        let args = ["retry-endpoint", "-redis-addr", "redis://:hunter2@host:6379", "-shard-bits=3"];
        let env = |name: &str| (name == "NACK_PORT").then(|| "9301".to_owned());
        let settings = Settings::from_args_and_env(args.into_iter().map(Into::into), env).expect("accepted");
        settings.describe().to_vec()
    }

    /// It stands for the parts that go by settings: what it is asked for is what it says that it did.
    fn set_config(
        &self,
        values: Option<BTreeMap<String, Option<String>>>,
    ) -> BoxFuture<'_, Result<ConfigOutcome, ConfigRefused>> {
        let change = |name, to: &str| Change { name, from: "10".into(), to: to.into() };
        let outcome = match values {
            None => Ok(ConfigOutcome { changed: Vec::new(), waiting: vec![change("nack-port", "9302")] }),
            Some(values) if values.contains_key("nack-port") => {
                Err(ConfigRefused("-nack-port: it needs a restart".into()))
            }
            Some(values) => {
                let flag = |name: &str| settings::all().find(|flag| flag.name == name).expect("a setting").name;
                let changed = values.iter().map(|(name, text)| change(flag(name), text.as_deref().unwrap_or("ended")));
                Ok(ConfigOutcome { changed: changed.collect(), waiting: Vec::new() })
            }
        };
        Box::pin(async { outcome })
    }

    fn members(&self) -> BoxFuture<'_, Members> {
        Box::pin(async move {
            self.asked_members.fetch_add(1, Ordering::SeqCst);
            let _permit = self.gate.acquire().await.expect("never closed");
            Members {
                instance: "NAME".into(),
                endpoints: vec![Endpoint {
                    nack: "[fd10::21]:9300".parse().expect("an address"),
                    tier: 1,
                    preference: 128,
                    flags: advert::FLAG_MULTICAST | advert::FLAG_DRAINING,
                    instance_id: 0xbeef,
                    heard_from: "[fe80::9%4]:40000".parse().expect("an address"),
                    age: Duration::from_millis(1_500),
                    expires_in: Duration::from_millis(178_500),
                }],
                redis: self.redis.lock().expect("no panic").clone(),
            }
        })
    }

    fn drain(&self) -> bool {
        !self.draining.swap(true, Ordering::SeqCst)
    }

    fn is_draining(&self) -> bool {
        self.asked_draining.fetch_add(1, Ordering::SeqCst);
        self.draining.load(Ordering::SeqCst)
    }
}

impl Source for OverLog {
    fn snapshot(&self) -> Snapshot {
        let shown = self.shown.lock().expect("no panic");
        shown.as_ref().map_or_else(|| self.stats(), |(snapshot, _)| snapshot.clone())
    }
}

impl StatusSource for OverLog {
    fn details(&self) -> Details {
        let shown = self.shown.lock().expect("no panic");
        shown.as_ref().map(|(_, details)| details.clone()).unwrap_or_default()
    }
}

/// A frame of this flow and number.
pub(crate) fn frame(version: Version, hash_key: u64, seq_num: u64, payload: &[u8]) -> Vec<u8> {
    let head = Head {
        proto: PROTO_VER,
        version,
        byte7: 1,
        ident: [0x5a; 32],
        key: FrameKey::new(hash_key, seq_num),
        scope: [0; 32],
        header_len: 0,
        payload_len: 0,
        fragment: None,
        bundle: None,
    };
    let mut bytes = vec![0; version.header_len() + payload.len()];
    let len = head.write_frame(payload, &mut bytes).expect("there is room");
    assert_eq!(len, bytes.len());
    bytes
}
