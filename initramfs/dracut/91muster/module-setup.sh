#!/bin/bash
# dracut's module for Muster: the node gets its certificate in the initramfs, before its root is mounted.
# Add it by name: dracut --add muster, or add_dracutmodules+=" muster " in /etc/dracut.conf.d/muster.conf.

# called by dracut: only where it was asked for, and there is an agent to put into the image
check() {
    if ! muster_agent > /dev/null; then
        muster_says "there is no muster-agent in /usr/bin or /usr/local/bin: make install-boot puts it there"
        return 1
    fi
    local ca=${dracutsysrootdir-}/etc/muster/ca.pem
    if [[ -e $ca ]] && ! grep -q '^-----BEGIN CERTIFICATE-----' "$ca"; then
        muster_says "$ca is no certificate: muster ca export on the head prints it"
        return 1
    fi
    return 255
}

# called by dracut
depends() {
    echo network
}

# called by dracut: udev loads them where there is such a TPM; many kernels have them built in
installkernel() {
    hostonly='' instmods '=drivers/char/tpm'
}

# called by dracut
install() {
    inst_binary "$(muster_agent)" /usr/bin/muster-agent
    # shellcheck disable=SC2154
    inst_script "$moddir/boot.sh" /usr/lib/muster/boot
    inst_hook cmdline 94 "$moddir/muster-net.sh"
    inst_hook initqueue/timeout 20 "$moddir/muster-alone.sh"
    inst_hook pre-mount 20 "$moddir/muster.sh"
    inst_multiple sleep mkdir rm
    inst_multiple -o reboot halt /etc/muster/agent.toml /etc/muster/ca.pem
}

# muster_agent finds the agent of the system that is to boot; /usr/local/bin is not in dracut's PATH.
muster_agent() {
    local agent
    for agent in /usr/bin/muster-agent /usr/local/bin/muster-agent; do
        if [[ -x ${dracutsysrootdir-}$agent ]]; then
            echo "$agent"
            return 0
        fi
    done
    return 1
}

# muster_says is an error only for whoever has asked for the module.
muster_says() {
    case " ${add_dracutmodules-} ${force_add_dracutmodules-} ${dracutmodules-} " in
        *" muster "*) derror "muster: $1" ;;
        *) dinfo "muster: $1" ;;
    esac
}
