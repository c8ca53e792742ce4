//! From the fabric into the frame log.

pub mod fill;
pub mod joins;
pub mod tee;
