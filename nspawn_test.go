package muster_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"muster/internal/testtpm"
)

// container is a machine that a real systemd boots, in about a second: a container of systemd-nspawn whose root is this
// machine's root with what `make install` installs before it. Nothing of it outlives the test, and nothing of
// this machine's /run, units and network is in it.
type container struct {
	t     *testing.T
	dir   string // stage/ is put before the root; share/ is /share in the machine
	binds []string
}

// inits runs in the machine's mount namespace and becomes systemd-nspawn. $1 is the machine's directory, the
// rest are options. What is on this machine's disk of a muster of its own does not exist in there, nor does
// its journal. The cgroup is the machine's, so that two at a time do not take each other's processes for
// their own.
const inits = `set -eu
dir=$1; shift
mount --make-rprivate /
mount -t tmpfs tmpfs "$dir/layer"
mkdir "$dir/layer/upper" "$dir/layer/work" "$dir/layer/root"
cp -a "$dir/stage" "$dir/layer/stage"
mount -t overlay -o "lowerdir=$dir/layer/stage:/,upperdir=$dir/layer/upper,workdir=$dir/layer/work" overlay "$dir/layer/root"
rm -rf "$dir"/layer/root/etc/muster "$dir"/layer/root/etc/systemd/system/muster* "$dir"/layer/root/var/lib/muster \
	"$dir"/layer/root/var/log/journal "$dir"/layer/root/etc/credstore
mount -t tmpfs tmpfs /run
for tree in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
	[ -w "$tree/cgroup.procs" ] || continue
	mkdir -p "$tree/${dir##*/}" && echo $$ >"$tree/${dir##*/}/cgroup.procs"
done
exec systemd-nspawn -D "$dir/layer/root" --machine="${dir##*/}" --hostname=machine -b --register=no --keep-unit \
	--private-network --console=read-only "--bind=$dir/share:/share" "$@" -- --unit=script.target systemd.log_target=journal systemd.show_status=no
`

// machineUnits run the script and end the machine with it.
var machineUnits = map[string]string{
	"script.target": "[Unit]\nRequires=basic.target\nAfter=basic.target\nWants=script.service\n",
	"script.service": "[Unit]\nAfter=basic.target\nSuccessAction=exit-force\nFailureAction=exit-force\n" +
		"[Service]\nType=oneshot\nExecStart=/bin/bash -eu /share/script\nStandardOutput=append:/share/out\nStandardError=append:/share/out\n",
}

// prelude is what scripts share.
const prelude = `
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root SYSTEMD_PAGER= SYSTEMD_COLORS=0
trap 'echo "line $LINENO ended the script with $?"; journalctl -o short-monotonic -u "muster*" | tail -n 60' ERR
set -o errtrace -o pipefail
# await CMD: until it succeeds. That it does at all is the assertion, never when.
await() { local n; for n in $(seq 600); do if "$@" >/dev/null 2>&1; then return 0; fi; sleep 0.05; done; echo "in vain: $*"; "$@"; }
property() { systemctl show --value -p "$2" "$1"; }
is() { [ "$(property "$1" "$2")" = "$3" ]; }
# expect WANT GOT
expect() { [ "$1" = "$2" ] || { echo "got '$2', want '$1'"; return 1; }; }
# logged UNIT FIELD=VALUE...: there is such an entry.
logged() { journalctl --quiet -o cat -u "$@" | grep -q .; }
dropin() { mkdir -p "/etc/systemd/system/$1.d"; cat >"/etc/systemd/system/$1.d/test.conf"; systemctl daemon-reload; }
cluster() { muster init --cluster try --host localhost,127.0.0.1 "$@" >/dev/null; pin=$(openssl pkey -pubin -outform DER \
	-in <(openssl x509 -in /var/lib/muster/public/ca.pem -noout -pubkey) | sha256sum | cut -d' ' -f1); }
node() { mkdir -p /etc/muster; printf '%s\n' 'head = "https://127.0.0.1:8443"' "ca = \"sha256:$pin\"" 'node = "n0"' "$@" >/etc/muster/agent.toml; }
systemd-sysusers
systemd-tmpfiles --create --prefix=/run --prefix=/var/lib/muster
`

// newContainer installs Muster on a machine.
func newContainer(t *testing.T) *container {
	t.Helper()
	needRoot(t)
	testtpm.Need(t, "systemd-nspawn")
	dir, err := os.MkdirTemp("", "machine") // not t.TempDir: its last part names the machine
	if err != nil {
		t.Fatal(err)
	}
	m := &container{t: t, dir: dir}
	t.Cleanup(m.clear)
	for _, sub := range []string{"share", "layer", "stage/etc", "stage/usr/lib/systemd/system"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	installed(t, filepath.Join(dir, "stage"), "/usr")
	m.write("stage/etc/hostname", "machine\n")
	for name, text := range machineUnits {
		m.write("stage/usr/lib/systemd/system/"+name, text)
	}
	return m
}

// needRoot ends a test that needs root: failed where CI is set, skipped elsewhere.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("systemd-nspawn needs root, and CI must not skip")
	}
	t.Skip("systemd-nspawn needs root")
}

func (m *container) write(name, text string) {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(m.dir, name), []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

// tpm puts a TPM into the machine, as the file /tpm/s.
func (m *container) tpm() {
	m.t.Helper()
	m.binds = append(m.binds, "--bind="+testtpm.Start(m.t).Dir()+":/tpm")
}

// run boots the machine and runs a script in it, as root, until it ends; a command that fails ends it, and
// fails the test. It returns what was printed.
func (m *container) run(script string) string {
	m.t.Helper()
	m.write("share/script", prelude+script+"\necho 'the script came to its end'\n")
	ctx, cancel := context.WithTimeout(m.t.Context(), 2*time.Minute)
	defer cancel()
	args := slices.Concat([]string{"--mount", "sh", "-c", inits, "sh", m.dir}, m.binds)
	cmd := exec.CommandContext(ctx, "unshare", args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var console bytes.Buffer
	cmd.Stdout, cmd.Stderr = &console, &console
	err := cmd.Run()
	out, readErr := os.ReadFile(filepath.Join(m.dir, "share/out"))
	if err != nil || readErr != nil || !strings.HasSuffix(string(out), "the script came to its end\n") {
		m.t.Fatalf("%v\n%s\n%s", errors.Join(err, readErr), console.String(), out)
	}
	return string(out)
}

// clear removes the machine's directory and cgroups.
func (m *container) clear() {
	for _, tree := range []string{"/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		var groups []string
		filepath.WalkDir(filepath.Join(tree, filepath.Base(m.dir)), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				groups = append(groups, path)
			}
			return nil
		})
		for _, group := range slices.Backward(groups) {
			os.Remove(group)
		}
	}
	if err := os.RemoveAll(m.dir); err != nil {
		m.t.Error(err)
	}
}

// TestContainer: the rig itself: a script runs under systemd, and one that fails is noticed.
func TestContainer(t *testing.T) {
	m := newContainer(t)
	out := m.run("cat /proc/1/comm; hostname; ip -o link | wc -l")
	if want := "systemd\nmachine\n1\n"; !strings.HasPrefix(out, want) {
		t.Errorf("got %q, want %q first", out, want)
	}
	if left, _ := os.ReadDir(filepath.Join(m.dir, "layer")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	fmt.Fprintln(t.Output(), out)
}
