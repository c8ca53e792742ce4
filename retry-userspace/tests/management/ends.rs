//! Draining, and the end of the listener.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use axum::http::Method;
use serde_json::json;

use crate::rig::{Api, Request, SOON, until_above_0};
use crate::{PATH, any_frame};

#[test]
fn a_draining_daemon_answers_and_takes_nothing() {
    let api = Api::open();
    assert_eq!(api.put(PATH, &any_frame()).status, 201);
    for began in [true, false] {
        let answer = api.call(Method::POST, "/v1/drain");
        assert_eq!((answer.status, answer.json()), (202, json!({ "status": "draining", "began": began })));
    }
    assert_eq!(api.put(PATH, &any_frame()).error(), (503, "draining".into()));
    assert_eq!(api.call(Method::DELETE, PATH).error(), (503, "draining".into()));
    assert_eq!(api.call(Method::GET, PATH).body, any_frame());
    assert_eq!(api.call(Method::GET, "/v1/stats").json()["draining"], json!(true));
    assert_eq!(api.call(Method::GET, "/v1/cluster/members").json()["self"]["draining"], json!(true));
}

#[test]
fn a_write_that_had_begun_ends() {
    let api = Api::open();
    let request = Request { body: any_frame(), ..Request::new(Method::PUT, PATH) };
    let mut connection = api.start(&request);
    until_above_0(&api.backend.asked_draining);
    assert_eq!(api.call(Method::POST, "/v1/drain").status, 202);
    connection.stream.write_all(&request.body).expect("sent");
    assert_eq!(connection.finish().status, 201);
}

#[test]
fn requests_under_way_end_before_the_listener_does() {
    let mut api = Api::open();
    let held = api.runtime.block_on(api.backend.gate.acquire()).expect("never closed");
    let connection = api.start(&Request::new(Method::GET, "/v1/cluster/members"));
    until_above_0(&api.backend.asked_members);
    // An idle connection holds up nothing.
    let idle = TcpStream::connect(api.address).expect("connected");
    api.cancel.cancel();
    let until = Instant::now() + SOON;
    while TcpStream::connect(api.address).is_ok() {
        assert!(Instant::now() < until, "connections are still taken");
    }
    assert!(!api.serving.as_ref().expect("not taken").is_finished());
    drop(held);
    assert_eq!(connection.finish().status, 200);
    api.ended().expect("no error");
    drop(idle);
}

#[test]
fn a_request_that_does_not_end_is_not_waited_for() {
    let mut api = Api::with(None, Duration::from_millis(50));
    api.backend.gate.forget_permits(1);
    let connection = api.start(&Request::new(Method::GET, "/v1/cluster/members"));
    until_above_0(&api.backend.asked_members);
    let began = Instant::now();
    api.cancel.cancel();
    api.ended().expect("no error");
    assert!(began.elapsed() >= Duration::from_millis(50));
    drop(connection);
}
