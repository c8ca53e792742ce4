//! Recovery from upstream endpoints.
