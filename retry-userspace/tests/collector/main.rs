//! What arrives at an OpenTelemetry collector: a gRPC server with the published protobuf services, on the loopback.
#![expect(clippy::print_stdout, reason = "a test that skips says so")]
#![expect(clippy::panic, reason = "a test says what it found")]

mod daemon;
mod exporter;
mod server;
mod whole;
