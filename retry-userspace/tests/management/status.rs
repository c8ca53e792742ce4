//! The status page and its JSON: what they show, and that no value of the daemon becomes markup.

use std::time::Duration;

use axum::http::Method;
use retry_common::counter::Counters;
use retry_userspace::parts::admin::status::{Details, Handover, InterfaceUse, Peer, Rights};
use retry_userspace::parts::metrics::{Snapshot, Upstream, XdpReason};
use retry_userspace::parts::{settings, telemetry};
use serde_json::json;

use crate::rig::Api;

/// The runbook, whose headings the page names.
const RUNBOOK: &str = include_str!("../../../docs/operations.md");
/// Markup that would run.
const HOSTILE: &str = "<script>alert('x')</script>\" onload=\"y";

fn metrics() -> Api {
    let args = ["retry-endpoint"].into_iter().map(Into::into);
    let settings = settings::Settings::from_args_and_env(args, |_| None::<String>).expect("the defaults");
    Api::metrics(telemetry::init(&telemetry::Config::from(&settings)))
}

fn show(api: &Api, snapshot: Snapshot, details: Details) {
    *api.backend.shown.lock().expect("no panic") = Some((snapshot, details));
}

fn page(api: &Api) -> String {
    let answer = api.call(Method::GET, "/");
    assert_eq!(answer.status, 200);
    String::from_utf8(answer.body).expect("text")
}

/// A daemon that does well: every part that may be absent is there, and every text is `text`.
fn daemon(text: &str) -> (Snapshot, Details) {
    let complete = Snapshot::complete();
    let mut snapshot = Snapshot {
        kernel: Counters { nack_requests: 1_234_567, acks_sent: 1_200, ..Counters::default() },
        user: Counters { nack_requests: 3, handovers_adopted: 2, ..Counters::default() },
        xdp_mode: "native",
        xdp_why: text.to_owned(),
        workers_ready: 2,
        workers_total: 2,
        start_mode: "adopted",
        upstreams: vec![Upstream { name: text.to_owned(), up: true, rtt: Some(Duration::from_micros(1_500)) }],
        delivered: vec![(text.to_owned(), complete.delivered[0].1)],
        ..complete
    };
    if let Some(store) = &mut snapshot.store {
        store.up = true;
    }
    snapshot.host.instance = text.to_owned();
    snapshot.host.name = text.to_owned();
    snapshot.host.kernel = text.to_owned();
    let details = Details {
        interfaces: vec![InterfaceUse { name: text.to_owned(), roles: vec!["frames", "NACKs"] }],
        peers: vec![Peer {
            nack: "[fd10::21]:9300".parse().expect("an address"),
            tier: 1,
            preference: 128,
            draining: true,
            age: Duration::from_millis(1_500),
            expires_in: Duration::from_secs(178),
        }],
        store_why: None,
        limits: vec![("rl-ip-rate", text.to_owned()), ("rl-ip-burst", "200".to_owned())],
        handover: Handover { on: true, bpf_lease: Duration::from_secs(60), daemon_lease: Duration::from_secs(1) },
        rights: Rights {
            capabilities: vec!["CAP_NET_ADMIN".to_owned(), "CAP_BPF".to_owned()],
            no_new_privileges: true,
            seccomp: "log",
        },
    };
    (snapshot, details)
}

#[test]
fn the_status_is_that_of_the_daemon() {
    let api = metrics();
    let (snapshot, details) = daemon("a-name");
    show(&api, snapshot, details);
    // The client holds the whole answer against docs/openapi.json.
    let status = api.call(Method::GET, "/v1/status").json();
    assert_eq!((&status["status"], &status["attention"]), (&json!("ready"), &json!([])));
    assert_eq!(status["nacks"][0], json!({ "name": "asked", "kernel": 1_234_567, "daemon": 3 }));
    assert_eq!(status["answers"][0], json!({ "name": "ack", "kernel": 1_200, "daemon": 0 }));
    assert_eq!(status["limits"][0]["settings"], "-rl-ip-rate a-name -rl-ip-burst 200");
    assert_eq!(status["peers"][0]["nack"], "[fd10::21]:9300");
    assert_eq!(status["handover"]["start_mode"], "adopted");
    let held = json!({ "capabilities": ["CAP_NET_ADMIN", "CAP_BPF"], "no_new_privileges": true, "seccomp": "log" });
    assert_eq!(status["privileges"], held);
    let page = page(&api);
    for shown in ["1,234,567", "1.5 ms", "[fd10::21]:9300", "frames, NACKs", "adopted: went on", "Nothing.", "1.0 s"] {
        assert!(page.contains(shown), "{shown} is not on the page: {page}");
    }
}

/// Interface names, names of hosts and texts of errors may hold anything: none of it becomes markup.
#[test]
fn hostile_text_is_escaped() {
    let api = metrics();
    let (mut snapshot, mut details) = daemon(HOSTILE);
    snapshot.problems = vec![HOSTILE.to_owned()];
    snapshot.warnings = vec![HOSTILE.to_owned()];
    snapshot.upstreams[0].up = false;
    snapshot.store = snapshot.store.map(|store| retry_userspace::parts::metrics::StoreUse { up: false, ..store });
    details.store_why = Some(HOSTILE.to_owned());
    (snapshot.xdp_mode, snapshot.xdp_reason) = ("off", XdpReason::Attach);
    show(&api, snapshot, details);
    let page = page(&api);
    assert!(!page.contains("<script>"), "{page}");
    assert!(!page.contains("\" onload="), "{page}");
    // Title and heading, host, its kernel, mode twice, interface, limit, upstream and Redis; problem, warning, XDP, Redis
    // and upstream again among what needs attention.
    assert_eq!(page.matches("&lt;script&gt;alert(").count(), 15, "{page}");
    assert_eq!(page.matches("<script").count(), 1, "the page's own");
}

#[test]
fn the_page_loads_what_it_names() {
    let api = metrics();
    let answer = api.call(Method::GET, "/");
    let policy = answer.header("content-security-policy").expect("a policy").to_owned();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    let page = String::from_utf8(answer.body).expect("text");
    for (link, kind) in [("/status.css", "text/css"), ("/status.js", "text/javascript")] {
        assert!(page.contains(&format!("\"{link}\"")), "{page}");
        let part = api.call(Method::GET, link);
        assert!(part.status == 200 && part.header("content-type").is_some_and(|is| is.starts_with(kind)));
    }
    // Inline handlers and styles are refused by the policy, so there are none.
    assert!(!page.contains(" style=") && !page.contains(" onclick=") && !page.contains("<style"), "{page}");
}

/// Every fault that the state shows is told with a section that docs/operations.md has, at the link of its heading.
#[test]
fn what_needs_attention_has_its_section() {
    let api = metrics();
    let (good, details) = daemon("a-name");
    type Change = fn(&mut Snapshot, &mut Details);
    let faults: [(&str, Change); 10] = [
        ("The daemon is not ready", |snapshot, _| snapshot.problems = vec!["-mc-iface eth0: no interface".into()]),
        ("XDP fell back", |snapshot, _| snapshot.problems = vec!["-xdp native: another XDP program".into()]),
        ("Answers are lost at an interface", |snapshot, _| {
            snapshot.problems = vec!["-xdp native: interface eth0: its driver takes no packet".into()]
        }),
        ("Answers are lost at an interface", |snapshot, _| snapshot.warnings = vec!["interface eth0: …".into()]),
        ("XDP fell back", |snapshot, _| (snapshot.xdp_mode, snapshot.xdp_reason) = ("off", XdpReason::Program)),
        ("Answers are lost at an interface", |snapshot, _| {
            (snapshot.xdp_mode, snapshot.xdp_reason) = ("off", XdpReason::Delivery)
        }),
        ("Redis is dead or refuses us", |snapshot, details| {
            snapshot.store = Some(Default::default());
            details.store_why = Some("Connection refused".into());
        }),
        ("An upstream is lost", |snapshot, _| snapshot.upstreams[0].up = false),
        ("A beacon is not heard", |snapshot, details| {
            snapshot.user.adverts_heard = 1;
            details.peers.clear();
        }),
        ("Restart and upgrade", |snapshot, _| snapshot.start_mode = "unfit"),
    ];
    for (section, change) in faults {
        let (mut snapshot, mut details) = (good.clone(), details.clone());
        change(&mut snapshot, &mut details);
        show(&api, snapshot, details);
        let attention = api.call(Method::GET, "/v1/status").json()["attention"].take();
        let one = &attention[0];
        assert_eq!((&one["section"], attention.as_array().map(Vec::len)), (&json!(section), Some(1)), "{attention}");
        assert!(RUNBOOK.contains(&format!("\n## {section}\n")), "docs/operations.md has no section {section}");
        let anchor = section.to_lowercase().replace(' ', "-");
        assert!(RUNBOOK.contains(&format!("](#{anchor})")), "its own table links there");
        let link = one["link"].as_str().expect("a link");
        assert!(link.ends_with(&format!("/docs/operations.md#{anchor}")), "{link}");
        let page = page(&api);
        assert!(page.contains(&format!("href=\"{link}\"")) && page.contains("1 thing needs attention"), "{page}");
    }
    // XDP that was not asked for is no fall-back, nor is a fabric where no other endpoint was ever heard.
    let (mut alone, mut details) = (good, details);
    (alone.xdp_mode, alone.xdp_reason) = ("off", XdpReason::Asked);
    details.peers.clear();
    show(&api, alone, details);
    assert_eq!(api.call(Method::GET, "/v1/status").json()["attention"], json!([]));
}
