#!/bin/sh
# cmdline hook, sourced: Muster needs the network, whatever the root is on.
# shellcheck disable=SC2154 # dracut sets netroot

# After the hooks that know whether the root needs it, and before those that look at rd.neednet. Where nothing else
# asks for it, the boot can also do without (muster-alone.sh).
if /usr/lib/muster/boot wanted && [ -z "$netroot" ] && ! getargbool 0 rd.neednet; then
    echo rd.neednet=1 > /etc/cmdline.d/muster.conf

    # Without ip= the network modules use DHCP on every link, but for systemd-networkd in older releases. By its
    # name every other file goes before this one.
    if [ -x /usr/lib/systemd/systemd-networkd ] && ! getarg ip= > /dev/null; then
        mkdir -p /run/systemd/network
        printf '[Match]\nKind=!*\nType=!loopback\n[Network]\nDHCP=yes\n' > /run/systemd/network/zzzz-muster.network
    fi
fi
