//! The daemon's store over every kind of Redis that operators have: one server, with users and TLS; a Cluster; a master
//! behind Sentinels; slow, dead and replaced ones. Needs root, for namespaces.

mod certificates;
mod check;
mod kinds;
mod refusal;
mod scene;
mod silence;
mod starter;
mod trouble;
