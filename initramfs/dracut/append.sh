#!/bin/sh
# Makes the archive that gives Muster to a dracut image without rebuilding it: boot it as a second initrd, or append
# it to the image. The image must have one of dracut's network modules.
#
#   append.sh -o FILE [--agent PATH] [--ca FILE] [--config FILE]
#
#   -o FILE          the archive, a compressed cpio; the same input gives the same bytes
#   --agent PATH     muster-agent; default: the one that make build has made
#   --ca FILE        the CA's certificate, /etc/muster/ca.pem in the image
#   --config FILE    settings, /etc/muster/agent.toml in the image
set -eu

wrong() { # WHAT HINT
	printf 'append.sh: %s\nhint: %s\n' "$1" "$2" >&2
	exit 2
}

here=$(cd "$(dirname "$0")" && pwd)
out='' ca='' config='' agent=$here/../../bin/muster-agent
while [ $# -gt 0 ]; do
	case $1 in
	-h | --help)
		sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
		exit 0
		;;
	-o | --agent | --ca | --config) [ $# -ge 2 ] || wrong "$1 wants a value" 'append.sh --help' ;;
	*) wrong "there is no option $1" 'append.sh --help' ;;
	esac
	case $1 in
	-o) out=$2 ;;
	--agent) agent=$2 ;;
	--ca) ca=$2 ;;
	--config) config=$2 ;;
	esac
	shift 2
done
[ -n "$out" ] || wrong 'the archive has no name' 'append.sh -o muster.cpio.gz'
[ -d "$(dirname -- "$out")" ] || wrong "-o $out: there is no such directory" "mkdir -p $(dirname -- "$out")"
if [ ! -f "$agent" ] || [ ! -x "$agent" ]; then
	wrong "--agent '$agent': that is no program" 'make build, and leave --agent out'
fi
for file in "$ca" "$config"; do
	if [ -n "$file" ] && [ ! -r "$file" ]; then
		wrong "$file: there is no such file, or it may not be read" 'append.sh --help'
	fi
done
# The archive is for all to read.
if [ -n "$ca" ] && ! { grep -q '^-----BEGIN CERTIFICATE-----' "$ca" && ! grep -q 'PRIVATE KEY-----' "$ca"; }; then
	wrong "--ca $ca: it is no certificate in PEM, or has more than that in it" "on the head: muster ca export > ca.pem"
fi
command -v cpio >/dev/null || wrong 'there is no cpio' 'apt install cpio'

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
put() { # MODE FROM TO
	install -D -m "$1" "$2" "$work/tree/$3"
	echo "$3" >>"$work/names"
}

# Only directories of our own are named: the kernel puts a directory in the place of a symbolic link, and in one
# release or another lib, sbin, and the hooks' are links.
install -d -m 755 "$work/tree/usr/lib/muster" "$work/tree/etc/muster"
printf '%s\n' usr/lib/muster etc/muster >"$work/names"
put 755 "$agent" usr/bin/muster-agent
put 755 "$here/../boot.sh" usr/lib/muster/boot
# The second is where dracut looks from release 104 on.
for hooks in usr/lib/dracut/hooks var/lib/dracut/hooks; do
	put 755 "$here/91muster/muster-net.sh" "$hooks/cmdline/94-muster-net.sh"
	put 755 "$here/91muster/muster-alone.sh" "$hooks/initqueue/timeout/20-muster-alone.sh"
	put 755 "$here/91muster/muster.sh" "$hooks/pre-mount/20-muster.sh"
done
[ -z "$ca" ] || put 644 "$ca" etc/muster/ca.pem
[ -z "$config" ] || put 644 "$config" etc/muster/agent.toml

find "$work/tree" -exec touch -d @0 {} +
(cd "$work/tree" && cpio -o -H newc --reproducible -R +0:+0 --quiet) <"$work/names" | gzip -9n >"$work/cpio.gz"
# To a multiple of four bytes, for whatever is appended to it.
size=$(wc -c <"$work/cpio.gz")
head -c $(((4 - size % 4) % 4)) /dev/zero >>"$work/cpio.gz"
mv "$work/cpio.gz" "$out"
