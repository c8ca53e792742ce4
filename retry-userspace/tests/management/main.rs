//! The management API over HTTP on loopback, and `-metrics-addr` beside it. Every answer that the client gets is held
//! against docs/openapi.json (`contract`).

#![expect(clippy::panic, reason = "a test's panic is its message")]

mod contract;
mod daemon;
mod ends;
mod rig;
mod status;

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::http::Method;
use retry_common::wire::frame::Version;
use serde_json::json;

use daemon::{LIFE_MS, frame};
use retry_userspace::parts::admin::manage::{LONGEST_FRAME, RedisMembers, routes};
use retry_userspace::parts::{settings, telemetry};
use rig::{Api, Request, SOON};

const FLOW: u64 = 0x00fe_edfa_ce00_0001;
const PATH: &str = "/v1/frames/00feedface000001/7";

fn any_frame() -> Vec<u8> {
    frame(Version::Transaction, FLOW, 7, b"payload")
}

#[test]
fn a_frame_is_put_read_and_deleted() {
    let api = Api::open();
    let bytes = any_frame();
    assert_eq!(api.call(Method::GET, PATH).error(), (404, "no_such_frame".into()));
    let stored = api.put(PATH, &bytes);
    assert_eq!((stored.status, stored.json()), (201, json!({ "outcome": "stored" })));
    let read = api.call(Method::GET, PATH);
    assert_eq!((read.status, &read.body), (200, &bytes));
    assert_eq!((read.header("frame-class"), read.header("frame-source")), (Some("tx"), Some("log")));
    let left: u32 = read.header("frame-ttl-ms").expect("a life").parse().expect("a number");
    assert!((1..=LIFE_MS).contains(&left), "{left}");

    let again = api.put(PATH, &bytes);
    assert_eq!((again.status, again.json()), (200, json!({ "outcome": "duplicate" })));
    let other = frame(Version::Transaction, FLOW, 7, b"other payload");
    let replaced = api.put(PATH, &other);
    assert_eq!((replaced.status, replaced.json()), (200, json!({ "outcome": "replaced" })));
    assert_eq!(api.call(Method::GET, PATH).body, other);

    let deleted = api.call(Method::DELETE, PATH);
    assert_eq!((deleted.status, deleted.body.len()), (204, 0));
    assert_eq!(api.call(Method::DELETE, PATH).error(), (404, "no_such_frame".into()));
    assert_eq!(api.call(Method::GET, PATH).error(), (404, "no_such_frame".into()));
}

#[test]
fn a_key_has_more_than_one_spelling() {
    let api = Api::open();
    assert_eq!(api.put("/v1/frames/0x00FEEDFACE000001/0x7", &any_frame()).status, 201);
    for path in [PATH, "/v1/frames/0x00feedface000001/7", "/v1/frames/00FEEDFACE000001/0x07"] {
        assert_eq!(api.call(Method::GET, path).status, 200, "{path}");
    }
    let last = frame(Version::Block, u64::MAX, u64::MAX, b"");
    assert_eq!(api.put("/v1/frames/ffffffffffffffff/18446744073709551615", &last).status, 201);
    let read = api.call(Method::GET, "/v1/frames/ffffffffffffffff/0xffffffffffffffff");
    assert_eq!((read.body, read.headers.iter().any(|(_, value)| value == "block")), (last, true));

    for hash_key in ["feed", "00feedface00000g", "+0feedface000001", "0x0x00feedface0000", "000feedface000001", "%20"] {
        let answer = api.call(Method::GET, &format!("/v1/frames/{hash_key}/7"));
        assert_eq!(answer.error(), (400, "bad_hashkey".into()), "{hash_key}");
    }
    for seq_num in ["0", "0x0", "-1", "+1", "0x+1", "1.0", "x", "0x", "18446744073709551616", "%31x"] {
        let answer = api.call(Method::GET, &format!("/v1/frames/00feedface000001/{seq_num}"));
        assert_eq!(answer.error(), (400, "bad_seq".into()), "{seq_num}");
    }
    assert_eq!(api.call(Method::GET, "/v1/frames/%ff/7").error(), (400, "bad_path".into()));
    assert_eq!(api.call(Method::GET, "/v1/frames/00feedface000001").error(), (404, "no_such_path".into()));
}

#[test]
fn a_life_is_told_in_seconds_or_as_a_duration() {
    let api = Api::open();
    let bytes = any_frame();
    for (ttl, ms) in [("90", 90_000), ("1m30s", 90_000), ("1176h", 4_233_600_000), ("1.5h", 5_400_000)] {
        assert_eq!(api.put(&format!("{PATH}?ttl={ttl}"), &bytes).status, 201, "{ttl}");
        let left: u32 = api.call(Method::GET, PATH).header("frame-ttl-ms").expect("a life").parse().expect("a number");
        assert!((ms - 30_000..=ms).contains(&left), "{ttl}: {left}");
        assert_eq!(api.call(Method::DELETE, PATH).status, 204);
    }
    for ttl in ["", "0", "0s", "-1s", "1us", "1177h", "4233601", "99999999999999999999", "soon", "1.5", "5%20s"] {
        assert_eq!(api.put(&format!("{PATH}?ttl={ttl}"), &bytes).error(), (400, "bad_ttl".into()), "{ttl}");
    }
    for query in ["tll=5s", "ttl=5s&more", "ttl=5s&ttl=6s"] {
        assert_eq!(api.put(&format!("{PATH}?{query}"), &bytes).error(), (400, "bad_query".into()), "{query}");
    }
    assert_eq!(api.call(Method::GET, PATH).status, 404);
    // A life ends.
    assert_eq!(api.put(&format!("{PATH}?ttl=1ms"), &bytes).status, 201);
    std::thread::sleep(Duration::from_millis(2));
    assert_eq!(api.call(Method::GET, PATH).status, 404);
}

#[test]
fn what_is_not_the_frame_of_the_path_is_refused() {
    let api = Api::open();
    let truncated = &any_frame()[..95];
    for (body, error) in [
        (&b""[..], "not_a_frame"),
        (b"no frame at all", "not_a_frame"),
        (truncated, "not_a_frame"),
        (&frame(Version::Transaction, FLOW, 8, b""), "key_differs"),
        (&frame(Version::Transaction, FLOW + 1, 7, b""), "key_differs"),
        (&frame(Version::Transaction, FLOW, 0, b""), "not_numbered"),
        (&frame(Version::Legacy, FLOW, 7, b""), "not_numbered"),
        (&frame(Version::Beef, FLOW, 7, b""), "refused"),
    ] {
        assert_eq!(api.put(PATH, body).error(), (422, error.into()));
    }
    let reason = api.put(PATH, &frame(Version::Transaction, FLOW, 8, b"")).json()["reason"].to_string();
    assert!(reason.contains("00feedface000001:7") && reason.contains("00feedface000001:8"), "{reason}");

    let put = |kind: &str| {
        api.send(Request { body: any_frame(), ..Request::new(Method::PUT, PATH) }.header("Content-Type", kind))
    };
    assert_eq!(put("application/json").error(), (415, "content_type".into()));
    assert_eq!(put("application/octet-stream").status, 201);
}

#[test]
fn a_frame_has_the_length_of_a_datagram_at_most() {
    let api = Api::open();
    let of_length = |len: usize| frame(Version::Anchor, FLOW, 7, &vec![3; len - 92]);
    let longest = of_length(LONGEST_FRAME);
    assert_eq!(api.put(PATH, &longest).status, 201);
    assert_eq!(api.call(Method::GET, PATH).body, longest);
    assert_eq!(api.put(PATH, &of_length(LONGEST_FRAME + 1)).error(), (413, "too_large".into()));
}

#[test]
fn a_store_that_is_down_is_said() {
    let api = Api::open();
    api.backend.store_down.store(true, Ordering::SeqCst);
    for answer in [api.call(Method::GET, PATH), api.put(PATH, &any_frame()), api.call(Method::DELETE, PATH)] {
        assert_eq!(answer.error(), (503, "store_unavailable".into()));
    }
}

#[test]
fn the_numbers_are_those_of_the_log() {
    let api = Api::open();
    api.put(PATH, &any_frame());
    let stats = api.call(Method::GET, "/v1/stats").json();
    assert_eq!(
        (&stats["frames"], &stats["draining"], &stats["xdp"]["mode"]),
        (&json!(1), &json!(false), &json!("off"))
    );
    assert_eq!(
        (&stats["rings"]["short"]["used_bytes"], &stats["rings"]["long"]["used_bytes"]),
        (&json!(192), &json!(0))
    );
    let counters = stats["counters"].as_array().expect("a list");
    let hits = |path: &str| json!({ "name": "bre_cache_hits_total", "labels": { "path": path }, "value": if path == "xdp" { 5 } else { 0 } });
    assert!(counters.contains(&hits("xdp")) && counters.contains(&hits("user")));
}

#[test]
fn the_settings_say_who_set_them_and_no_password() {
    let api = Api::open();
    let answer = api.call(Method::GET, "/v1/config");
    assert!(!String::from_utf8_lossy(&answer.body).contains("hunter2"));
    let settings = answer.json()["settings"].as_array().expect("a list").clone();
    assert_eq!(settings.len(), settings::all().count());
    for (name, env, value, set_by) in [
        ("shard-bits", "SHARD_BITS", "3", "flag"),
        ("nack-port", "NACK_PORT", "9301", "env"),
        ("scope", "MC_SCOPE", "site", "default"),
    ] {
        assert!(
            settings.contains(&json!({
                "name": name, "env": env, "value": value, "set_by": set_by, "live": false, "after_restart": null,
            })),
            "{name}"
        );
    }
    let live = settings.iter().find(|one| one["name"] == "rl-ip-rate").expect("a setting");
    assert_eq!(live["live"], true);
}

#[test]
fn settings_are_set_by_a_body_and_read_again_without_one() {
    let api = Api::open();
    let post =
        |body: &str| api.send(Request { body: body.as_bytes().to_vec(), ..Request::new(Method::POST, "/v1/config") });
    let again = post("");
    assert_eq!(
        (again.status, again.json()),
        (200, json!({ "changed": [], "needs_restart": [{ "name": "nack-port", "from": "10", "to": "9302" }] }))
    );
    let set = post(
        r#"{"rl-ip-rate": 0.5, "suppress-miss": true, "rl-ip-burst": 7, "cache-ttl": "3s", "log-level": null,
                       "egress-iface": ["a", "b"]}"#,
    );
    let to: Vec<_> = set.json()["changed"].as_array().expect("a list").iter().map(|one| one["to"].clone()).collect();
    // In the order of their names.
    assert_eq!(
        (set.status, to),
        (200, vec![json!("3s"), json!("a,b"), json!("ended"), json!("7"), json!("0.5"), json!("true")])
    );
    assert_eq!(post(r#"{"nack-port": 9302}"#).error(), (422, "refused".into()));
    for body in ["x", "[]", "{", r#"{"a": {}}"#, r#"{"a": [1]}"#, r#"{"a": 1} x"#] {
        assert_eq!(post(body).error(), (400, "bad_settings".into()), "{body}");
    }
    assert_eq!(post(&format!(r#"{{"a": "{}"}}"#, "x".repeat(LONGEST_FRAME))).error(), (413, "too_large".into()));
    let foreign = Request::new(Method::POST, "/v1/config").header("Origin", "http://elsewhere");
    assert_eq!(api.send(foreign).error(), (403, "origin".into()));
    let guarded = Api::with(Some("secret"), SOON);
    assert_eq!(guarded.call(Method::POST, "/v1/config").error(), (401, "unauthorized".into()));
}

#[test]
fn the_members_are_told() {
    let api = Api::open();
    let answer = api.call(Method::GET, "/v1/cluster/members").json();
    assert_eq!(
        answer["self"],
        json!({ "instance": "NAME", "instance_id": format!("{:#010x}", retry_common::wire::advert::instance_id("NAME")), "draining": false })
    );
    assert_eq!(
        answer["endpoints"],
        json!([{
            "instance_id": "0x0000beef", "nack": "[fd10::21]:9300", "tier": 1, "preference": 128,
            "flags": ["draining", "multicast"], "draining": true, "heard_from": "[fe80::9%4]:40000",
            "age_seconds": 1.5, "expires_in_seconds": 178.5,
        }])
    );
    assert_eq!(answer["redis"]["nodes"][0]["slots"], json!([[0, 5_460]]));
    for (redis, state) in [
        (RedisMembers::NotConfigured, "not_configured"),
        (RedisMembers::Unavailable("connection refused".into()), "unavailable"),
    ] {
        *api.backend.redis.lock().expect("no panic") = redis;
        assert_eq!(api.call(Method::GET, "/v1/cluster/members").json()["redis"]["state"], state);
    }
}

#[test]
fn every_route_asks_for_the_token() {
    let api = Api::with(Some("secret"), SOON);
    let elsewhere = [(Method::GET, "/"), (Method::POST, "/v1/stats"), (Method::GET, "/v1/frames/x/y")];
    for (method, path) in routes().chain(elsewhere) {
        let path = path.replace("{hashkey}", "00feedface000001").replace("{seq}", "7");
        let bare = || Request::new(method.clone(), &path);
        let without = api.send(bare());
        assert_eq!(without.error(), (401, "unauthorized".into()), "{method} {path}");
        assert_eq!(without.header("www-authenticate"), Some(r#"Bearer realm="retry-endpoint""#));
        for wrong in ["Bearer sEcret", "Bearer secre", "Bearer secret2", "Bearer", "Basic secret"] {
            let answer = api.send(bare().header("Authorization", wrong));
            assert_eq!(answer.error(), (401, "unauthorized".into()), "{method} {path} {wrong}");
        }
        let right = api.send(bare().header("Authorization", "Bearer secret"));
        assert!(!matches!(right.status, 401 | 403), "{method} {path}: {}", right.status);
    }
    let wrong = api.send(Request::new(Method::GET, "/v1/stats").header("Authorization", "Bearer other"));
    assert!(wrong.header("www-authenticate").is_some_and(|value| value.contains("invalid_token")));
}

#[test]
fn without_a_token_web_pages_are_not_served() {
    let page = |api: &Api| api.send(Request::new(Method::POST, "/v1/drain").header("Origin", "https://example.org"));
    let api = Api::open();
    assert_eq!(page(&api).error(), (403, "origin".into()));
    assert!(!api.backend.draining.load(Ordering::SeqCst));
    // A page that has the token was given it.
    let api = Api::with(Some("secret"), SOON);
    assert_eq!(page(&api).status, 401);
}

#[test]
fn what_is_not_there_is_said_in_json() {
    let api = Api::open();
    for path in ["/", "/v2/stats", "/v1/stats/", "/metrics"] {
        assert_eq!(api.call(Method::GET, path).error(), (404, "no_such_path".into()), "{path}");
    }
    let answer = api.call(Method::POST, PATH);
    assert_eq!(answer.error(), (405, "method_not_allowed".into()));
    let mut allowed: Vec<_> = answer.header("allow").expect("the methods").split(',').collect();
    allowed.sort_unstable();
    assert_eq!(allowed, ["DELETE", "GET", "HEAD", "PUT"]);
}

#[test]
fn metrics_and_health_are_as_documented() {
    let args = ["retry-endpoint"].into_iter().map(Into::into);
    let settings = settings::Settings::from_args_and_env(args, |_| None::<String>).expect("the defaults");
    let api = Api::metrics(telemetry::init(&telemetry::Config::from(&settings)));
    let metrics = api.call(Method::GET, "/metrics");
    assert!(metrics.status == 200 && String::from_utf8_lossy(&metrics.body).contains("bre_cache_size 0"));
    assert_eq!(api.call(Method::GET, "/healthz").json()["status"], "ok");
    assert_eq!(api.call(Method::GET, "/readyz").json()["status"], "ready");
    api.backend.draining.store(true, Ordering::SeqCst);
    let draining = api.call(Method::GET, "/readyz");
    assert_eq!((draining.status, &draining.json()["status"]), (503, &json!("draining")));
    assert_eq!(api.call(Method::POST, "/loglevel?level=warn").json(), json!({ "level": "warn" }));
    assert_eq!(api.call(Method::POST, "/loglevel?level=loud").status, 400);
    assert_eq!(api.call(Method::POST, "/loglevel").status, 400);
}
