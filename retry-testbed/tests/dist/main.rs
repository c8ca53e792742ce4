//! What `cargo xtask dist` makes, installed and run: the Debian package on a host with a systemd of its own, the image in a
//! container, and what the RPM package and the lists hold.
//!
//! The suite's host is this machine's file system below an overlay, in namespaces of its own. The commands of docs/install.md run
//! on it as they stand there.

#![expect(clippy::panic, reason = "a test's panic is its message")]

mod artifacts;
mod document;
mod guest;
mod image;
mod package;
mod scene;
mod thread;
