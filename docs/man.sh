#!/bin/sh
# Prints the manual page of muster or muster-agent, section 8, made from what the program says of itself: the --help of
# it and of each of its commands.
#
#   man.sh PROGRAM
set -eu
program=$1 name=${1##*/}

# The pages have no character beyond ASCII but these.
roff() { sed -e 's/\\/\\e/g' -e 's/-/\\-/g' -e 's/…/\\[u2026]/g' -e "s/^[.']/\\\\\&&/"; }

# commands are the names in the list of a help page.
commands() { sed -n '/^\(Available \)*Commands:$/,/^$/s/^  \([a-z-]*\) .*/\1/p'; }

# page prints the help of a command and of those below it.
page() {
	title=DESCRIPTION
	[ $# = 0 ] || title="$name $*"
	printf '.SH "%s"\n.nf\n' "$(echo "$title" | roff)"
	"$program" "$@" --help | roff
	echo .fi
	for command in $("$program" "$@" --help | commands); do
		case $command in completion | help) continue ;; esac
		page "$@" "$command"
	done
}

case $name in
muster) what='sign certificates for cluster nodes' files='/etc/muster/signer.toml, /var/lib/muster, /run/muster-head/admin.sock' other=muster-agent ;;
*) what='get this node a certificate whose key is in its TPM' files='/etc/muster/agent.toml, /etc/muster/ca.pem, /run/muster' other=muster ;;
esac
printf '.TH %s 8 "" "%s" Muster\n.SH NAME\n%s - %s\n' "$name" "$("$program" version)" "$name" "$what" | sed 's/-/\\-/g'
page
printf '.SH FILES\n%s\n.SH "SEE ALSO"\n.BR %s (8);\n' "$files" "$other" | sed 's/-/\\-/g'
echo "operations.md and systemd.md of Muster's documents have every setting, file and exit status."
