#!/bin/sh
# initqueue/timeout hook, sourced: the network does not come up. Where Muster alone asked for it the boot goes on
# without; dracut would open a shell in the end.
# shellcheck disable=SC2154 # dracut sets hookdir

if [ -e /etc/cmdline.d/muster.conf ]; then
    rm -f -- "$hookdir"/initqueue/finished/wait-network.sh
    if [ -e /tmp/net.ifaces ]; then
        read -r muster_links < /tmp/net.ifaces
        for muster_link in $muster_links; do
            rm -f -- "$hookdir/initqueue/finished/wait-$muster_link.sh"
        done
        unset muster_links muster_link
    fi
fi
