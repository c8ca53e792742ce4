//! Several instances behind one Redis: real daemons on one bridged fabric, a real Redis on a host of its own. Judged by the
//! bytes on the wire, by what Redis holds, and by the daemons' counters. Needs root; each test makes namespaces of its own.

mod redis_server;
mod site;

mod clocks;
mod dedup;
mod frames;
mod handover;
mod limits;
mod nodes;
mod outage;
mod recovery;
mod retries;
mod tls;
