//! The real daemon on real fabrics: frames in by multicast, NACKs from listeners, every packet that comes back checked.
//! Needs root; each test makes namespaces of its own and removes them.
#![expect(clippy::print_stdout, reason = "a test that skips says so")]

mod changes;
mod delivery;
mod fill;
mod ingress;
mod interfaces;
mod intruders;
mod lifecycle;
mod losses;
mod nack_port;
mod pins;
mod recovery;
mod same_answers;
mod scene;
mod settings;
mod suppression;
mod verify;
