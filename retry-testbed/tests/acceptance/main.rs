//! What the field asks of an endpoint, one scenario a test, written from the specifications: the real daemon on real
//! fabrics, judged by the bytes on the wire and by its own counters. Needs root; each test makes namespaces of its own.
#![expect(clippy::print_stdout, reason = "a test that skips says so")]

#[path = "../e2e/scene.rs"]
mod scene;
mod tools;

mod beacons;
mod burst;
mod discovery;
mod domains;
mod drain;
mod identities;
mod limits;
mod logs;
mod recovery;
mod ssm;
mod start;
mod strangers;
mod tee;
mod tiers;
