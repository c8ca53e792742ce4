//! Restart, crash and upgrade of the daemon under traffic: the kernel program goes on, and the next daemon takes over.
//! Needs root; each test makes namespaces of its own and removes them.
#![expect(clippy::print_stdout, reason = "what a scene has counted is what to read")]

mod leases;
mod restarts;
mod verbs;
