//! Packet tables on the real XDP program: a packet in, then action, bytes and counters out. Needs root; runs on every
//! kernel that we support, so the tables need nothing but `ip link`.
#![expect(clippy::print_stdout, reason = "a test that skips says so")]

mod bytes;
mod clones;
mod fill;
mod latency;
mod sent;
mod strangers;
mod table;
mod takeover;
mod talkers;
mod verdicts;
mod watch;
mod who;
