//! One real daemon, or one with its upstream endpoints, on real fabrics: every packet that comes back is checked, and so are
//! the daemon's own counters, logs and files. Several daemons over one Redis are the suite `shared`.
//! Needs root; each test makes namespaces of its own and removes them.
//!
//! Each module is one subject and says at its top what holds. What several modules need is `retry_testbed::scene`.
#![expect(clippy::print_stdout, reason = "what a scene has counted is what to read")]

mod admin_tls;
mod alerts;
mod beacons;
mod burst;
mod bytes;
mod changes;
mod check_verb;
mod delivery;
mod discovery;
mod domains;
mod drain;
mod fill;
mod hostile;
mod http;
mod identities;
mod ingress;
mod interfaces;
mod intruders;
mod known;
mod latency;
mod lifecycle;
mod limits;
mod live_settings;
mod logs;
mod losses;
mod memberships;
mod nack_port;
mod nack_verb;
mod pins;
mod poison;
mod privileges;
mod recovery;
mod refusals;
mod rejoin;
mod repairs;
mod retries;
mod same_answers;
mod settings;
mod shutdown;
mod ssm;
mod start;
mod strangers;
mod suppression;
mod systemd;
mod talkers;
mod tee;
mod tiers;
mod top;
mod verify;
mod watch;
mod who;
