#!/bin/sh
# pre-mount hook, sourced: the node's certificate, in /run/muster, which goes along to the root.

if /usr/lib/muster/boot wanted; then
    # The other network modules have been waited for.
    if [ -n "$DRACUT_SYSTEMD" ] && systemctl -q is-enabled systemd-networkd.service 2> /dev/null; then
        /usr/lib/systemd/systemd-networkd-wait-online --any --timeout=60 > /dev/null 2>&1
    fi
    /usr/lib/muster/boot run
    # The system in the root shall not find it among its own.
    rm -f /run/systemd/network/zzzz-muster.network
fi
