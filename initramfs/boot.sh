#!/bin/sh
# Muster's part of an initramfs that is not Muster's own, /usr/lib/muster/boot in it: the hooks for dracut,
# initramfs-tools and mkinitcpio call it, and a u-root image's uinit reads it. Nothing is needed but a shell (u-root's
# gosh is one), sleep and muster-agent.
#
#   boot wanted   whether this boot is to have a certificate: no without a head, and with rd.muster=0
#   boot run      get it; without one, do what muster.fail says: continue, reboot or halt
#
# Each line that it says is on the console, and in the kernel's log for later. There is never a shell.
set -u
set -f # words of the kernel command line are no patterns

agent=/usr/bin/muster-agent
config=/etc/muster/agent.toml

say() {
	printf 'muster: %s\n' "$1" >>/dev/console
	printf '<7>muster: %s\n' "$1" >>/dev/kmsg # so low that it is not on the console again
} 2>/dev/null

# word prints the value of the last of the named parameters, as the kernel splits the line but for spaces
# within quotes, which none of ours has.
word() {
	found=
	read -r line </proc/cmdline
	for w in $line; do
		w=${w#\"}
		for name in "$@"; do
			case $w in
			"$name"=*)
				found=${w#*=}
				found=${found#\"}
				found=${found%\"}
				;;
			esac
		done
	done
	printf '%s' "$found"
}

# configured says whether the image names a head.
configured() {
	[ -r "$config" ] || return 1
	while read -r key _ || [ -n "$key" ]; do
		case $key in
		head | head=* | \"head\" | \"head\"=*) return 0 ;;
		esac
	done <"$config"
	return 1
}

wanted() {
	case $(word rd.muster) in
	0 | no | off) return 1 ;;
	esac
	[ -n "$(word muster.head rd.muster.head)" ] || configured
}

# show says what the agent prints, with its log's lines as a person would write them, and last what to do
# about a failure.
show() {
	hint=
	while read -r line; do
		case $line in
		'hint: '*) hint=$line ;;
		'exit status 0') return ;;
		'exit status '*) failed "${line##* }" "$hint" ;;
		'level='*' msg="'*)
			line=${line#*msg=\"}
			say "${line%%\"*} (${line#*\" })"
			;;
		'level='*' msg='*)
			line=${line#*msg=}
			say "${line%% *} (${line#* })"
			;;
		*) say "${line#muster-agent: }" ;;
		esac
	done
}

# failed does what muster.fail says.
failed() {
	policy=$(word rd.muster.fail)
	[ -n "$policy" ] || policy=$(word muster.fail)
	case $policy in
	reboot) say "rebooting in 20s (status $1)" ;;
	halt) say "halted (status $1)" ;;
	'' | continue) say "going on without a certificate (status $1)" ;;
	*) say "muster.fail=$policy is none of continue, reboot and halt; going on without a certificate (status $1)" ;;
	esac
	[ -z "$2" ] || say "$2"
	case $policy in
	reboot)
		sleep 20 # for whoever reads the last lines, and to spare the head nodes that boot in circles
		reboot -f
		echo b >/proc/sysrq-trigger # there was no reboot in this image
		;;
	halt) halt -f ;;
	*) return ;;
	esac 2>/dev/null
	while :; do sleep 3600; done # until the power goes
}

case ${1-} in
wanted) wanted ;;
run)
	{
		"$agent" run 2>&1
		echo "exit status $?"
	} | show
	;;
*)
	echo "usage: boot wanted|run" >&2
	exit 2
	;;
esac
