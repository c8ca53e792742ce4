//! Scenes: a daemon with its peers on a fabric, as more than one suite or the bench sets them up.
//!
//! [`suppression`] lets hundreds of listeners miss the same frames and counts the copies of their repairs.

pub mod suppression;
