//! Trying again: one policy, whoever retries.
