//! Alerts and dashboards (`deploy/prometheus`, `deploy/grafana`) under Debian's Prometheus: the rules are right by
//! themselves (`promtool`), every expression of a panel returns data of daemons that work, and each alert fires when its
//! fault is there and ends when the fault has ended. A Prometheus that takes native histograms gets them.

mod faults;
mod files;
mod native;
mod prometheus;
mod texts;
