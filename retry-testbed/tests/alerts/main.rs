//! Alerts and dashboards (`deploy/prometheus`, `deploy/grafana`) under Debian's Prometheus: the rules are right by
//! themselves (`promtool`), every expression of a panel returns data of daemons that work, and each alert fires when its
//! fault is there and ends when the fault has ended.

mod faults;
mod files;
mod prometheus;
mod texts;
