# After the installation and after an upgrade.
systemd-sysusers retry-endpoint.conf
if [ -d /run/systemd/system ]; then
    systemd-tmpfiles --create retry-endpoint.conf
    # A container may not change the host's settings.
    /usr/lib/systemd/systemd-sysctl /usr/lib/sysctl.d/20-retry-endpoint.conf || true
    systemctl daemon-reload
    # The kernel answers between the end of the old daemon and the start of the new one.
    systemctl try-restart retry-endpoint.service
    systemctl --quiet is-enabled retry-endpoint.service ||
        echo "retry-endpoint: set MC_IFACE in /etc/default/retry-endpoint, then: systemctl enable --now retry-endpoint"
fi
