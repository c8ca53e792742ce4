# Before the files go: end the daemon, and then what it leaves in the kernel for a next one.
if [ -d /run/systemd/system ]; then
    systemctl --quiet disable --now retry-endpoint.service
fi
if [ -d /sys/fs/bpf/retry-endpoint ]; then
    # A daemon of another network namespace keeps its own.
    retry-endpoint detach || echo "retry-endpoint: something is left in the kernel, until its lease ends"
    rmdir --ignore-fail-on-non-empty /sys/fs/bpf/retry-endpoint
fi
