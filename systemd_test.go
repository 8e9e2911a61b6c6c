package muster_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"muster/signer"
	"muster/signer/store/bolt"
)

// begin makes a cluster and starts the head as an administrator does.
const begin = `
cluster
systemctl start muster.service
is muster.service StatusText 'try: serving and signing' || await is muster.service StatusText 'try: serving and signing'
`

// TestUnitsEnrol: head and node under their units, as installed. What root makes by hand belongs to the head's
// user; the node's files are there when muster.target is reached, for whom they are meant.
func TestUnitsEnrol(t *testing.T) {
	c := newContainer(t)
	c.tpm()
	c.run(begin + `
expect '' "$(find /var/lib/muster ! -user muster)"
expect 'muster muster 700' "$(stat -c '%U %G %a' /var/lib/muster)"
expect 'root muster 660' "$(stat -c '%U %G %a' /run/muster-head/admin.sock)"
expect 'root muster 750' "$(stat -c '%U %G %a' /run/muster-head)"
expect muster "$(ps -o user= -p "$(property muster.service MainPID)" | tr -d ' ')"

# Another user may use the command line as a member of the group only.
useradd --system one; useradd --system --groups muster two
! setpriv --reuid one --regid one --init-groups muster certs list
setpriv --reuid two --regid two --init-groups muster certs enable -i n0
muster log --json | grep -q "\"by\":\"uid $(id -u two) pid"

node 'tpm = "swtpm:path=/tpm/s"'
cat >/etc/systemd/system/consumer.service <<END
[Unit]
Requires=muster.target
After=muster.target
[Service]
Type=oneshot
ExecStart=/usr/bin/openssl verify -CAfile /run/muster/ca.pem /run/muster/node.crt
END
systemctl daemon-reload
systemctl start consumer.service
is muster-agent.service SubState exited
is muster.target ActiveState active
expect 'ca.pem 644 chain.pem 644 node.crt 644 node.key 600 openssl.cnf 644 status.json 644' "$(cd /run/muster; echo $(stat -c '%n %a' *))"
expect 755 "$(stat -c %a /run/muster)"
muster certs list --json | grep -q '"state": *"active"'

# Reload asks again; restart too; the files stay where the unit is stopped.
systemctl reload muster-agent.service
systemctl restart muster-agent.service
systemctl stop muster-agent.service
is muster.target ActiveState inactive
test -s /run/muster/node.crt
`)
}

// TestUnitsRenew: the timer's service renews what is due, in the place where the agent's has put it, and is no failure
// where there is no head, or nothing to renew.
func TestUnitsRenew(t *testing.T) {
	c := newContainer(t)
	c.tpm()
	c.run(begin + `
node 'tpm = "swtpm:path=/tpm/s"' 'wait = "5s"'
muster certs enable -i n0 --life 1m --refresh-at 99%
systemctl start muster-agent-renew.service
is muster-agent-renew.service ConditionResult no
systemctl start muster.target
cp /run/muster/node.crt /tmp/first
renewed() { systemctl start muster-agent-renew.service && ! cmp -s /tmp/first /run/muster/node.crt; }
await renewed
is muster.target ActiveState active
openssl verify -CAfile /run/muster/ca.pem /run/muster/node.crt
systemctl enable --now muster-agent-renew.timer
is muster-agent-renew.timer SubState waiting
systemctl stop muster.socket muster-public.socket muster-admin.socket muster.service
systemctl start muster-agent-renew.service
is muster-agent-renew.service ExecMainStatus 75
is muster-agent-renew.service Result success
test -s /run/muster/node.crt
`)
}

// TestUnitsByHand: whatever root does by hand, before init, in place of it and in place of the unit, the head's
// user can go on with.
func TestUnitsByHand(t *testing.T) {
	newContainer(t).run(`
systemctl start muster.service && exit 1
is muster.service ExecMainStatus 2
is muster.service NRestarts 0
logged muster MUSTER_EVENT=serve-failed 'MUSTER_HINT=muster init --dir /var/lib/muster'
cluster
systemctl start muster.service
systemctl stop muster.socket muster-public.socket muster-admin.socket muster.service

muster serve --listen 127.0.0.1:9443 2>/tmp/log &
await muster ca show
expect muster "$(ps -o user= -p $! | tr -d ' ')"
grep -q '^CapEff:.*0000000000000000' /proc/$!/status
muster certs disable -a --yes || expect 4 $?
muster certs enable -i n0 >/dev/null
kill $!
wait $!
expect '' "$(find /var/lib/muster ! -user muster)"
systemctl start muster.service
muster certs list -o name | grep -qx n0
`)
}

// TestUnitsWithoutUser: an administrator who forgets to have the user made is told, before there is anything that
// this user could not read; and one who has done it all the same is told how to mend it.
func TestUnitsWithoutUser(t *testing.T) {
	newContainer(t).run(`
userdel muster
rm -rf /var/lib/muster
muster init --host localhost 2>/tmp/out || expect 2 $?
grep -q '^hint: systemd-sysusers && systemd-tmpfiles --create' /tmp/out
test ! -e /var/lib/muster
muster init --host localhost --dir /tmp/elsewhere >/dev/null
systemd-sysusers
systemd-tmpfiles --create --prefix=/run --prefix=/var/lib/muster
muster init --host localhost >/tmp/out
grep -q '1. systemctl enable --now muster.service' /tmp/out

chown -R root: /var/lib/muster/*
systemctl start muster.service && exit 1
logged muster MUSTER_EVENT=serve-failed 'MUSTER_HINT=as root: chown -R muster: /var/lib/muster'
chown muster: /var/lib/muster/store.db
systemctl restart muster.service && exit 1
told() { journalctl -u muster | grep -q 'open /var/lib/muster/ca/ca.key: permission denied hint="as root: chown -R muster: /var/lib/muster"'; }
await told
chown -R muster: /var/lib/muster
systemctl reset-failed muster.service muster.socket muster-public.socket muster-admin.socket
systemctl restart muster.service
muster ca show >/dev/null
`)
}

// TestUnitsTaken: where another program has the port, what to do is what the socket unit can do.
func TestUnitsTaken(t *testing.T) {
	newContainer(t).run(`
cluster
muster init --dir /tmp/other --host localhost >/dev/null
muster serve --dir /tmp/other --public '' --socket /tmp/other.sock 2>/dev/null &
await muster ca show --socket /tmp/other.sock
systemctl start muster.service && exit 1
is muster.service ExecMainStatus 2
logged muster 'MUSTER_HINT=ss -ltnp shows who has it; another address: systemctl edit muster.socket, as systemd.md has it under Addresses'
kill $!
wait $!
systemctl reset-failed muster.service muster.socket muster-public.socket muster-admin.socket
systemctl start muster.service
`)
}

// TestUnitsPreset: nothing is enabled by itself, and one command enables a head, or a node.
func TestUnitsPreset(t *testing.T) {
	newContainer(t).run(`
units="muster.service muster.socket muster-public.socket muster-admin.socket muster-agent.service muster-agent-renew.timer muster-est.socket"
enabled() { systemctl is-enabled $units || true; }
systemctl preset $units
expect 'disabled disabled disabled disabled disabled disabled disabled' "$(echo $(enabled))"
systemctl enable muster.service
expect 'enabled enabled enabled enabled disabled disabled disabled' "$(echo $(enabled))"
systemctl disable muster.service
systemctl enable muster-agent.service muster-agent-renew.timer
expect 'disabled disabled disabled disabled enabled enabled disabled' "$(echo $(enabled))"
`)
}

// TestUnitsHeadLater: the node is up before its head. systemd starts the agent again until it has what it
// needs, and then whoever waits for muster.target.
func TestUnitsHeadLater(t *testing.T) {
	c := newContainer(t)
	c.tpm()
	c.run(`
cluster
node 'tpm = "swtpm:path=/tpm/s"' 'wait = "1s"'
dropin muster-agent.service <<<$'[Service]\nRestartSec=100ms\n'
cat >/etc/systemd/system/waiting.service <<END
[Unit]
Requires=muster.target
After=muster.target
[Service]
ExecStart=/bin/sleep infinity
[Install]
WantedBy=muster.target
END
systemctl enable waiting.service
systemctl start muster.target && exit 1
! is waiting.service ActiveState active
logged muster-agent MUSTER_EVENT=try-again MUSTER_STATUS=75 PRIORITY=3
restarted() { [ "$(property muster-agent.service NRestarts)" -ge 1 ]; }
await restarted
systemctl start muster.service
muster certs enable -i n0
await is muster.target ActiveState active
await is waiting.service ActiveState active
test -s /run/muster/node.crt
`)
}

// TestUnitsNoTPM: without a TPM the unit fails, for good, and the journal says what to do.
func TestUnitsNoTPM(t *testing.T) {
	out := newContainer(t).run(`
cluster
node 'wait = "1s"'
dropin muster-agent.service <<<$'[Service]\nRestartSec=100ms\n'
systemctl start muster-agent.service && exit 1
is muster-agent.service ExecMainStatus 69
is muster-agent.service SubState failed
is muster-agent.service NRestarts 0
logged muster-agent MESSAGE_ID=111c16985bf145708ed51fe2c8f27653 MUSTER_STATUS=69 PRIORITY=3 SYSLOG_IDENTIFIER=muster-agent
journalctl --update-catalog
journalctl -x -u muster-agent MUSTER_EVENT=no-tpm
`)
	for _, want := range []string{"no usable TPM: ", " hint=", "Subject: This node has no usable TPM", "muster-agent doctor"} {
		if !strings.Contains(out, want) {
			t.Errorf("the journal does not say %q:\n%s", want, out)
		}
	}
}

// load is clients of every listener, each request on a connection of its own, while the head is restarted
// again and again. Its last line is how many requests failed, and of how many.
const load = `
muster ca export >/share/ca.pem
bundle() { curl -fsS -o /dev/null --max-time 60 --cacert /share/ca.pem https://127.0.0.1:8443/v1/bundle; }
health() { curl -fsS -o /dev/null --max-time 60 http://127.0.0.1:8080/healthz; }
client() { until [ -e /share/stop ]; do if "$@" >>/tmp/said 2>&1; then echo good; else echo "bad $*"; fi; done >>/tmp/answers; }
for what in bundle bundle bundle health 'muster ca show' "$@"; do client $what & clients="${clients-} $!"; done
for i in 1 2 3 4 5; do
	enough() { [ "$(wc -l </tmp/answers)" -gt $((40 * i)) ]; }
	await enough
	systemctl restart muster.service
done
touch /share/stop
wait $clients
grep bad /tmp/answers | sort | uniq -c || true
grep -v "^n0: \|^subject\|^pin\|^expires\|^CRL" /tmp/said | sort | uniq -c || true
[ "$(wc -l </tmp/answers)" -gt 200 ]
echo "failed $(grep -c bad /tmp/answers || true)"
`

// TestUnitsRestart: a restart of the head under load loses no request: who has not been accepted waits in the
// socket, and who has is answered. Without the socket unit some are lost.
func TestUnitsRestart(t *testing.T) {
	t.Run("sockets", func(t *testing.T) {
		c := newContainer(t)
		c.tpm()
		out := c.run(begin + `
node 'tpm = "swtpm:path=/tpm/s"'
muster certs enable -i n0
muster-agent run >/dev/null
set -- 'muster-agent run'
` + load)
		if !strings.Contains(out, "\nfailed 0\n") {
			t.Error(out)
		}
	})
	t.Run("control: without muster.socket", func(t *testing.T) {
		out := newContainer(t).run(`
systemctl mask muster.socket
` + begin + load)
		if strings.Contains(out, "\nfailed 0\n") {
			t.Errorf("no request is lost either, so this test shows nothing\n%s", out)
		}
	})
}

// TestUnitsFinish: a request that is under way when the head is told to end is answered.
func TestUnitsFinish(t *testing.T) {
	newContainer(t).run(`
mkdir -p /etc/muster
echo 'verbose = true' >/etc/muster/signer.toml
` + begin + `
muster ca export >/tmp/ca.pem
head -c 12000 /dev/zero | tr '\0' x >/tmp/body
before=$(property muster.service MainPID)
curl -sS -o /tmp/answer -w '%{http_code}' --limit-rate 4k -H 'Expect:' -H 'Content-Type: application/json' --data-binary @/tmp/body \
	--cacert /tmp/ca.pem https://127.0.0.1:8443/v1/challenge >/tmp/status &
await logged muster MUSTER_PATH=/v1/challenge
systemctl restart muster.service
wait $!
expect 400 "$(cat /tmp/status)"
grep -q bad_request /tmp/answer
[ "$before" != "$(property muster.service MainPID)" ]
expect success "$(property muster.service Result)"
`)
}

// TestUnitsWatchdog: a head that hangs is started again, and leaves a trace of where it hung. One whose store
// fails does not hang.
func TestUnitsWatchdog(t *testing.T) {
	newContainer(t).run(`
dropin muster.service <<<$'[Service]\nWatchdogSec=2\nRestartSec=100ms\n'
mount -t tmpfs -o size=3m,mode=0700,uid=muster,gid=muster tmpfs /var/lib/muster
` + begin + `
pid=$(property muster.service MainPID)
grep -q '^Max core file size *0 *0 ' "/proc/$pid/limits"
fed() { [ "$(property muster.service WatchdogTimestampMonotonic)" -gt "$last" ]; }

# A full disk: what has to be written fails, and what can be read is served.
dd if=/dev/zero of=/var/lib/muster/full bs=64k 2>/dev/null || true
systemctl reload muster.service
await logged muster MUSTER_EVENT=upkeep-failed PRIORITY=3
for i in 1 2 3; do
	last=$(property muster.service WatchdogTimestampMonotonic)
	await fed
	curl -fsS -o /dev/null http://127.0.0.1:8080/healthz
done
expect "$pid" "$(property muster.service MainPID)"
rm /var/lib/muster/full

# A hang.
kill -STOP "$pid"
another() { is muster.service ActiveState active && ! is muster.service MainPID "$pid"; }
await another
is muster.service NRestarts 1
curl -fsS -o /dev/null http://127.0.0.1:8080/readyz
journalctl -u muster | grep 'Watchdog timeout'
[ "$(journalctl -u muster | grep -c 'goroutine [0-9].*:')" -gt 5 ]
`)
}

// TestUnitsNotSigning: a head that may not sign is up, and says why, where an administrator looks.
func TestUnitsNotSigning(t *testing.T) {
	c := newContainer(t)
	state := filepath.Join(c.dir, "share/state")
	later := time.Now().Add(48 * time.Hour) // as after a clock that was far ahead
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	store := filepath.Join(state, "store.db")
	if err := bolt.Create(store, "machine"); err != nil {
		t.Fatal(err)
	}
	st, err := bolt.Open(store, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	_, err = signer.Init(t.Context(), state, st, signer.Plan{Cluster: "try", Hosts: []string{"localhost"}}, later)
	if err := errors.Join(err, st.Close()); err != nil {
		t.Fatal(err)
	}
	out := c.run(`
rmdir /var/lib/muster
cp -r /share/state /var/lib/muster
systemctl start muster.service
expect muster "$(stat -c %U /var/lib/muster/ca/ca.key)"
await is muster.service StatusText 'try: signing nothing (clock), serving what is on record'
expect 'clock 503' "$(echo $(curl -sS -w '%{http_code}' http://127.0.0.1:8080/readyz))"
muster ca show >/dev/null
journalctl --update-catalog
journalctl -x -u muster MUSTER_EVENT=not-signing MUSTER_REASON=clock PRIORITY=3
`)
	if !strings.Contains(out, "Set it right") {
		t.Errorf("no remedy:\n%s", out)
	}
}

// TestUnitsReload: SIGHUP takes what can be taken without a restart, and refuses a configuration that is not
// good; not one connection is lost.
func TestUnitsReload(t *testing.T) {
	newContainer(t).run(begin + `
pid=$(property muster.service MainPID)
coproc openssl s_client -quiet -verify_quiet -connect 127.0.0.1:8443 2>/dev/null
crl=$(echo /var/lib/muster/public/*.crl)
number() { openssl crl -inform DER -in "$crl" -noout -crlnumber; }
before=$(number)
mkdir -p /etc/muster
echo 'verbose = true' >/etc/muster/signer.toml
systemctl reload muster.service
await logged muster MUSTER_VERBOSE=true
newer() { [ "$(number)" != "$before" ]; }
await newer
curl -fsS -o /dev/null http://127.0.0.1:8080/healthz
await logged muster MUSTER_PATH=/healthz PRIORITY=7

echo 'verbos = true' >/etc/muster/signer.toml
systemctl reload muster.service
await logged muster MUSTER_EVENT=reload-failed PRIORITY=3
await is muster.service ActiveState active
expect "$pid" "$(property muster.service MainPID)"
printf 'GET /v1/bundle HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n' >&${COPROC[1]}
grep -q 'HTTP/1.1 200' <&${COPROC[0]}

# With that file it does not start; the socket does not make it try for ever.
systemctl restart muster.service && exit 1
is muster.service ExecMainStatus 2
logged muster MUSTER_EVENT=serve-failed MUSTER_STATUS=2
rm /etc/muster/signer.toml
systemctl reset-failed muster.service
systemctl start muster.service
`)
}

// TestUnitsPassphrase: the passphrase of the CA's key is systemd's credential, and gets nowhere else.
func TestUnitsPassphrase(t *testing.T) {
	out := newContainer(t).run(`
mkdir -m 0700 /etc/credstore
word=correct-horse-battery-staple
(umask 077; echo $word >/etc/credstore/muster.ca-passphrase)
cluster --ca-passphrase /etc/credstore/muster.ca-passphrase
systemctl start muster.service
muster ca show >/dev/null
pid=$(property muster.service MainPID)
tr '\0' '\n' </proc/$pid/environ >/tmp/environ; tr '\0' '\n' </proc/$pid/cmdline >/tmp/cmdline
muster log --json >/tmp/log

echo wrong >/etc/credstore/muster.ca-passphrase
systemctl restart muster.service && exit 1
is muster.service ExecMainStatus 2
is muster.service NRestarts 0
logged muster MUSTER_EVENT=ca-locked MUSTER_STATUS=2 PRIORITY=3
rm /etc/credstore/muster.ca-passphrase
systemctl start muster.service && exit 1
is muster.service ExecMainStatus 2
journalctl --update-catalog
journalctl -x -u muster MUSTER_EVENT=ca-locked

# And as the documentation has it, encrypted for this machine alone.
mkdir -m 0700 /etc/credstore.encrypted
echo $word | systemd-creds encrypt --with-key=host --name=ca-passphrase - /etc/credstore.encrypted/muster.ca-passphrase
dropin muster.service <<<$'[Service]\nLoadCredentialEncrypted=ca-passphrase:muster.ca-passphrase\n'
systemctl reset-failed muster.service
systemctl start muster.service
muster ca show >/dev/null

journalctl -o export >/tmp/journal
grep -q 'CA key: the passphrase does not fit' /tmp/journal
echo "$word" >/tmp/control
grep -rl "$word" /tmp >/dev/null
rm /tmp/control
! grep -rl "$word" /tmp /var/lib/muster /etc /run/systemd /var/log 2>/dev/null
`)
	for _, want := range []string{"and there is no passphrase", "/etc/credstore/muster.ca-passphrase", "Subject: The key of the CA is encrypted"} {
		if !strings.Contains(out, want) {
			t.Errorf("the journal does not say %q:\n%s", want, out)
		}
	}
}

// TestSystemdDocument runs what docs/systemd.md tells its readers to type, on a machine with the address that it
// has there.
func TestSystemdDocument(t *testing.T) {
	document, err := os.ReadFile("docs/systemd.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := blocksOf(string(document), "sh machine")
	if len(blocks) < 10 {
		t.Fatalf("only %d blocks", len(blocks))
	}
	script := `
ip address add 10.54.0.1/32 dev lo
dropin muster-agent.service <<<$'[Service]\nExecStart=\nExecStart=/usr/bin/muster-agent run --tpm swtpm:path=/tpm/s\n'
dropin muster-agent-renew.service <<<$'[Service]\nExecStart=\nExecStart=/usr/bin/muster-agent renew --tpm swtpm:path=/tpm/s\n'
`
	for _, b := range blocks {
		script += fmt.Sprintf("echo '# the block at line %d'\n%s", b.line, b.text)
	}
	c := newContainer(t)
	c.tpm()
	c.run(script + `
is muster.service ActiveState active
is needs-certificate.service ActiveState active
curl -fsS -o /dev/null http://10.54.0.1:8081/readyz
curl -fsS -o /dev/null --cacert /etc/muster/ca.pem --connect-to head1.example.org::[::1]: https://head1.example.org:8444/.well-known/est/cacerts
curl -fsS -o /dev/null --cacert /etc/muster/ca.pem --connect-to head1.example.org::[::1]: https://head1.example.org:8443/v1/bundle
grep -q 'BEGIN ENCRYPTED' /var/lib/muster/ca/ca.key
test ! -e /etc/credstore/muster.ca-passphrase
expect '' "$(find /var/lib/muster ! -user muster)"
`)
}
