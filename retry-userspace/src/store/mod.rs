//! The store that instances share: Redis.
