package vm_test

import (
	"os"
	"path/filepath"
	"testing"
)

// threeAgents start at the same moment, one of them at the bare device as in an initramfs, two at the kernel's
// resource manager. The run before them has left its key: that goes, so that each might make one.
const threeAgents = `#!/bin/busybox sh
/bin/muster-agent forget --key | /bin/busybox sed 's/^/next: /'
for tpm in tpm0 tpmrm0 tpmrm0; do
	{ /bin/muster-agent run --tpm device:/dev/$tpm --wait 5m; echo "status $?"; } 2>&1 | /bin/busybox sed "s/^/next: $tpm: /" &
done
echo "next: all are under way"
wait
echo next: files $(/bin/busybox ls -A /run/muster)
/bin/muster-agent doctor | /bin/busybox sed 's/^/next: /'
/bin/busybox ip link set eth0 down
/bin/busybox poweroff -f
`

// TestTogether: three agents at once on a real kernel get one certificate for one key, and all are content.
func TestTogether(t *testing.T) {
	r := newRig(t)
	image := filepath.Join(shortDir(t), "image.cpio.gz")
	script := filepath.Join(filepath.Dir(image), "next")
	if err := os.WriteFile(script, []byte(threeAgents), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := buildImage(image, "-file", script+":sbin/next", "-file", "/bin/busybox:bin/busybox"); err != nil {
		t.Fatal(err)
	}
	s := r.software("muster.wait=0 muster.exec=/sbin/next")
	s.Initrd = image
	ctx := within(t)
	b, err := r.node.Power(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Cut)
	if err := b.WaitFor(ctx, `next: all are under way`); err != nil {
		t.Fatal(err)
	}
	r.enable()
	if err := b.Off(ctx); err != nil {
		t.Fatal(err)
	}
	r.says(b, `next: forgotten: certificate, CA and key`)
	r.says(b, `(?s)(next: tpm(rm)?0: status 0\r?\n.*){3}`)
	r.says(b, `(?s)n0: enrolled at .*(n0: certificate .* confirmed by .*){2}`)
	r.says(b, `next: files .lock ca.pem chain.pem node.crt node.key openssl.cnf status.json`)
	r.says(b, `next: ok    key          p256 at 0x81004E00`)
	r.is("active")
}
