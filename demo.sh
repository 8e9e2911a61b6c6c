#!/bin/sh
# A node passes muster, and comes back: the head and the nodes of a cluster, on loopback, with a
# software TPM (swtpm) for each node. Run it by `make demo`. It leaves nothing behind.
# shellcheck disable=SC2046,SC2086 # $sock, and what on prints, are several words
set -eu
cd "$(dirname "$0")"
PATH=$PWD/bin:$PATH
dir=$(mktemp -d)
pids=
end() {
	status=$?
	for p in $pids; do kill "$p" 2>/dev/null || true; done
	wait
	rm -rf "$dir"
	[ $status = 0 ] || echo "the demo broke off (status $status)" >&2
}
trap end EXIT
trap 'exit 130' INT TERM

if [ -t 1 ]; then bold=$(printf '\033[1m'); plain=$(printf '\033[0m'); else bold='' plain=''; fi
step() { printf '\n%s%s%s\n' "$bold" "$1" "$plain"; }
# show prints a command as a person would type it, and runs it.
show() { printf '$ %s\n' "$(echo "$*" | sed "s|$dir/||g")"; "$@" 2>&1 | sed "s|$dir/||g"; }
# refused runs a command that must end with the given status.
refused() {
	want=$1; shift
	printf '$ %s\n' "$(echo "$*" | sed "s|$dir/||g")"
	got=0; "$@" >"$dir/out" 2>&1 || got=$?
	sed "s|$dir/||g" "$dir/out"
	[ "$got" = "$want" ] || { echo "exit status $got, not $want" >&2; exit 1; }
	printf '(exit status %s)\n' "$got"
}

# power NAME: switch a machine on. Its TPM keeps its state in a file, as a chip does.
power() {
	mkdir -p "$dir/$1.tpm"
	swtpm socket --tpm2 --tpmstate "dir=$dir/$1.tpm" --server "type=unixio,path=$dir/$1.sock" \
		--ctrl "type=unixio,path=$dir/$1.ctrl" --flags not-need-init,startup-clear 2>/dev/null &
	eval "tpm_$1=$!"
	pids="$pids $!"
	until [ -S "$dir/$1.sock" ]; do sleep 0.05; done
}
# cut NAME: pull the plug.
cut() { eval "kill -9 \$tpm_$1; wait \$tpm_$1" 2>/dev/null || true; rm -f "$dir/$1.sock" "$dir/$1.ctrl"; }

free_port() { # a port that nobody listens on now
	p=$(( 20000 + $(od -An -N2 -tu2 /dev/urandom) % 30000 ))
	while grep -qi ":$(printf %04X "$p") 0*:0000 0A" /proc/net/tcp /proc/net/tcp6 2>/dev/null; do p=$((p + 1)); done
	echo "$p"
}
port=$(free_port)
public=$((port + 1))
head=https://localhost:$port
sock="--socket $dir/admin.sock"

step "1. The head node: make a cluster, and serve."
show muster init --dir "$dir/state" --cluster demo --host localhost,127.0.0.1 | sed '/^$/,$d'
muster serve --dir "$dir/state" --listen "localhost:$port" --public "localhost:$public" $sock 2>"$dir/serve.log" &
pids="$pids $!"
printf '$ muster serve --dir state --listen localhost:%s --public localhost:%s --socket admin.sock &\n' "$port" "$public"
until [ -S "$dir/admin.sock" ]; do kill -0 $! || { cat "$dir/serve.log" >&2; exit 1; }; sleep 0.05; done
pin=$(muster ca show --json $sock | sed -n 's/.*"pin": "\(.*\)".*/\1/p' | head -n 1)

# on MACHINE: where its TPM and its root are. Real nodes have them at /dev/tpmrm0 and /.
on() { echo "--tpm swtpm:path=$dir/$1.sock --root $dir/$1.root"; }

step "2. The administrator lets one node in."
show muster certs enable -i n0 $sock

step "3. n0 boots for the first time. Its key is born in its TPM; it proves so and gets a certificate."
power n0
show muster-agent run --head "$head" --ca "$pin" --node n0 $(on n0)
show muster certs list $sock

step "4. n0 loses power and boots again. The certificate is in its TPM: no CSR, one signature."
before=$(muster log --json $sock | wc -l)
cut n0; power n0
show muster-agent run --head "$head" --ca "$pin" --node n0 $(on n0)
echo "(new lines in the head's journal: $(( $(muster log --json $sock | wc -l) - before )))"

step "5. n0 talks mTLS with the key in its TPM."
show muster-agent get $(on n0) "$head/v1/self"
echo
show muster-agent status $(on n0)

step "6. Another machine, with another TPM, claims to be n0."
power rogue
refused 75 muster-agent run --head "$head" --ca "$pin" --node n0 --wait 2s $(on rogue)
show muster why n0 $sock

step "7. n1, which nobody enabled."
power n1
refused 75 muster-agent run --head "$head" --ca "$pin" --node n1 --wait 2s $(on n1)
show muster why n1 $sock

step "8. What the head remembers."
show muster log $sock

step "Done. Nothing is left running."
