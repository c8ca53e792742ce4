//! Both writers of the frame log at full speed: the kernel on two queues and the daemon, with duplicates, restarts, replaced
//! frames, laps, expiry and hostile payloads. Each scene ends with a check of the whole log and of every byte that it holds.
//! Needs root; each test makes namespaces of its own and removes them.
//!
//! Two minutes in all. `RETRY_STRESS_SECONDS` is the time for the traffic of all scenes together.
#![expect(clippy::print_stdout, reason = "a test that skips says so, and what a scene has sent is what to read")]

mod held;
mod material;
mod scene;
mod scenes;
mod sender;
