# After the files went.
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
fi
