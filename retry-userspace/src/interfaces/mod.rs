//! The interfaces as they are now: what the kernel tells of them, and what follows from that.
//!
//! [`watch`] hears of changes by rtnetlink and looks at everything every second all the same, so that a message that was
//! lost, or that the kernel does not send (a detached XDP link), costs a second and no more. [`plan`] is pure: from what
//! is wanted, what stands and what was seen it says what has to be done, and what keeps the daemon from serving. [`delivery`] judges whether interfaces take what
//! the kernel program redirects to them.

pub(crate) mod delivery;
pub(crate) mod plan;
pub(crate) mod watch;
