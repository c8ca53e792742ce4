//! Settings that must fit together. What one setting alone may be is checked where it is read.

use retry_common::group::SourceMode;

use super::error::SettingsError;
use super::model::Settings;
use super::source::Values;
use super::table::{Backend, FillMode, XdpMode};

/// Most publishers that are joined by name alone: a socket takes a bounded number of sources for a group.
const STATIC_PUBLISHERS: usize = 16;

/// # Errors
/// The first rule that is broken, told by the setting that the operator has to change.
pub(super) fn check(settings: &Settings, values: &Values) -> Result<(), SettingsError> {
    let refuse = |name, accepted: &str| Err(values.refusal(name, accepted));
    if settings.ssm.publishers.len() > STATIC_PUBLISHERS && settings.ssm.manifests.is_empty() {
        return refuse(
            "ssm-publishers-static",
            &format!(
                "at most {STATIC_PUBLISHERS} are accepted without -ssm-bootstrap-manifest, not {}",
                settings.ssm.publishers.len()
            ),
        );
    }
    if settings.ingress.source_mode == SourceMode::Ssm && settings.ingress.join && !settings.ssm.names_sources() {
        return refuse(
            "ssm-publishers-static",
            "-source-mode ssm needs it, or one of -ssm-bootstrap-manifest, -ssm-bootstrap-beacon and \
             -ssm-bootstrap-subtree-announce: IPv6 addresses and DNS names, comma separated, are accepted",
        );
    }
    if !settings.ingress.join && settings.ingress.tee.is_none() {
        return refuse("tee-listen", "-mc-join-enabled=false needs it: a loopback address and port is accepted");
    }
    if settings.xdp.fill == FillMode::Kernel && (settings.xdp.mode == XdpMode::Off || !settings.ingress.join) {
        return refuse(
            "fill",
            "kernel needs -xdp auto, native or skb, and -mc-join-enabled: auto and daemon are accepted",
        );
    }
    if settings.cache.backend == Backend::Redis && settings.redis.nodes.is_empty() {
        return refuse("redis-addr", "-cache-backend redis needs it: host:port, redis:// or rediss:// is accepted");
    }
    let limits = &settings.limits;
    for (name, rate, burst, tokens) in [
        ("rl-ip-rate", limits.ip_rate, "rl-ip-burst", limits.ip_burst),
        ("rl-group-rate", limits.group_rate, "rl-group-burst", limits.group_burst),
    ] {
        if rate.is_off() {
            continue;
        }
        if tokens == 0 {
            return refuse(burst, &format!("at least 1 is accepted while -{name} is above 0"));
        }
        if u64::from(tokens) > rate.largest_burst() {
            let largest = rate.largest_burst();
            return refuse(
                burst,
                &format!("1 to {largest} is accepted at this -{name}: more take 36 years to come back"),
            );
        }
    }
    let none_is_known = limits.known_listeners == 0 || limits.ip_rate.is_off();
    if limits.unproven_factor > 0 && none_is_known && settings.acl.allow.is_empty() && settings.acl.file.is_none() {
        return refuse(
            "unproven-factor",
            "0 is accepted without known listeners (-known-listeners and -rl-ip-rate above 0) and without an allow list: \
             no address could show that it hears",
        );
    }
    if settings.proxy.enabled && settings.proxy.upstreams.is_empty() && !settings.proxy.discover {
        return refuse(
            "upstream-retry-endpoints",
            "-proxy-enabled needs it, or -proxy-discover: host:port, comma separated, is accepted",
        );
    }
    if !settings.proxy.enabled && settings.proxy.discover {
        return refuse("proxy-enabled", "true is accepted with -proxy-discover");
    }
    if !settings.proxy.enabled && !settings.proxy.upstreams.is_empty() {
        return refuse("proxy-enabled", "true is accepted with -upstream-retry-endpoints");
    }
    if settings.dedup.repeat_after > settings.dedup.window && !settings.dedup.window.is_zero() {
        let window = values.text("dedup-window");
        return refuse("dedup-repeat-after", &format!("0 to {window}, the -dedup-window, is accepted"));
    }
    let is_tls = settings.redis.nodes.iter().any(|node| node.url.starts_with("rediss"));
    for (name, is_set) in
        [("redis-tls-ca", settings.redis.tls_ca.is_some()), ("redis-tls-cert", settings.redis.tls_client.is_some())]
    {
        if is_set && !is_tls {
            return refuse(name, "it is accepted with rediss:// in -redis-addr");
        }
    }
    if let Some(address) = settings.admin.addr
        && !address.ip().is_loopback()
        && settings.admin.token.is_none()
        && settings.admin.tls.as_ref().is_none_or(|tls| tls.client_ca.is_none())
    {
        return refuse(
            "admin-addr",
            "a loopback address is accepted, or any with -admin-token-file, ADMIN_TOKEN or -admin-tls-client-ca",
        );
    }
    if settings.admin.tls.is_some() && settings.admin.addr.is_none() {
        return refuse("admin-addr", "-admin-tls-cert needs it: address:port, name:port or :port is accepted");
    }
    Ok(())
}
