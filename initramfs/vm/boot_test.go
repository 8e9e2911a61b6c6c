package vm_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"muster/initramfs/vm"
)

// TestTwoBoots: a first boot enrols, with either way of talking to a TPM; after a power cycle the
// certificate comes from the TPM, and nothing more is signed.
func TestTwoBoots(t *testing.T) {
	for _, kind := range []string{"crb", "tis"} {
		t.Run(kind, func(t *testing.T) {
			r := newRig(t)
			r.node.TPM = kind
			r.enable()
			r.golden("first", r.boot(""))
			first := r.is("active")
			r.golden("second", r.boot(""))
			if again := r.is("active"); again != first {
				t.Errorf("the second boot has another certificate: %+v, %+v", again, first)
			}
		})
	}
}

// TestNotEnabled: nothing is signed, and the last line says where to look.
func TestNotEnabled(t *testing.T) {
	r := newRig(t)
	r.golden("not-enabled", r.boot("muster.wait=8s"))
}

// TestSlips: what makes no sense on the kernel command line is said and keeps no node from its certificate; who names
// a root as for other images reads how to name it here.
func TestSlips(t *testing.T) {
	r := newRig(t)
	r.enable()
	r.golden("slips", r.boot("root=/dev/vda1 muster.fail=rebooot muster.shell=yes rd.muster=0 rd.muster.wiat=8s"))
	r.is("active")
}

// TestNoTPM: without a TPM the node ends at once, whatever else it has.
func TestNoTPM(t *testing.T) {
	r := newRig(t)
	r.node.TPM = "none"
	r.enable()
	r.golden("no-tpm", r.boot(""))
	r.is("open")
	why, err := r.head.Admin("why", "n0")
	if err != nil || !strings.Contains(why, "reported from 127.0.0.1") || !strings.Contains(why, "its firmware shows none") {
		t.Errorf("why: %s, %v", why, err)
	}
}

// TestWrongPin: a head that does not chain to the pin learns nothing.
func TestWrongPin(t *testing.T) {
	r := newRig(t)
	r.enable()
	// The last of several wins, as in the kernel.
	r.golden("wrong-pin", r.boot("muster.wait=8s muster.ca=sha256:"+"00000000000000000000000000000000"+"00000000000000000000000000000000"))
	r.is("open")
}

// TestRogueHead: another cluster's head in the place of a node's own. It is not believed; and where the
// image has the CA's certificate, it cannot keep a node from the certificate in its TPM.
func TestRogueHead(t *testing.T) {
	r := newRig(t)
	r.enable()
	r.boot("")
	rogue, err := vm.NewHead(shortDir(t), parts.muster)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(rogue.Stop)
	r.golden("rogue-head", r.boot("muster.wait=8s muster.head="+rogue.URL()))
	s := r.software("muster.head=" + rogue.URL() + " muster.ca=" + rogue.Pin) // which the image's CA overrules
	s.Initrd = filepath.Join(shortDir(t), "image.cpio.gz")
	ca, err := r.head.Admin("ca", "export")
	if err != nil {
		t.Fatal(err)
	}
	pem := filepath.Join(filepath.Dir(s.Initrd), "ca.pem")
	if err := os.WriteFile(pem, []byte(ca), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := buildImage(s.Initrd, "-ca", pem); err != nil {
		t.Fatal(err)
	}
	r.golden("rogue-head-ca", r.off(s))
	r.is("active")
}

// TestClocks: whatever the clock says at power-on, the node enrols, and its clock is the head's then. A
// second boot without a head must not go back behind the certificate in NV.
func TestClocks(t *testing.T) {
	for _, c := range []struct{ name, rtc string }{
		{"1970", "1970-01-02T00:00:00"}, {"2000", "2000-01-01T00:00:00"}, {"2106", "2106-01-01T00:00:00"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			r.node.RTC, r.node.Disks = c.rtc, []string{r.disk("clock")}
			r.enable()
			b := r.boot("muster.root=/dev/vda")
			r.says(b, `the clock was overruled by the head's`)
			r.says(b, `enrolled at`)
			r.says(b, `root: this year is `+thisYear())
			r.is("active")
			b = r.boot("muster.root=/dev/vda")
			r.says(b, `confirmed by`)
			r.says(b, `root: this year is `+thisYear())
		})
	}
}

// nextProgram is a site's own end of an initramfs.
const nextProgram = `#!/bin/busybox sh
echo "next: I am $$, status $MUSTER_STATUS"
/sbin/modprobe -q -- loop && /bin/busybox grep -q '^loop ' /proc/modules && echo "next: loop is loaded"
/bin/muster-agent status | /bin/busybox sed 's/^/next: /'
/bin/busybox ip link set eth0 down
/bin/busybox poweroff -f
`

// TestHandOver: each way to go on finds /run/muster.
func TestHandOver(t *testing.T) {
	t.Run("squashfs", func(t *testing.T) {
		r := newRig(t)
		r.node.Disks = []string{r.disk("hand-over")}
		r.enable()
		b := r.boot("muster.root=/dev/vda init=/bin/../sbin/init")
		r.golden("hand-over", b)
		r.says(b, `root: I am 1`)
		r.says(b, `root: /run/muster has ca.pem chain.pem node.crt node.key openssl.cnf status.json`)
		r.says(b, `root: -rw------- .* node.key`)
		r.says(b, `root: there is /dev/tpmrm0`)
		r.says(b, `root: can write`)
	})
	t.Run("ext4 by its label", func(t *testing.T) {
		r := newRig(t)
		r.node.Disks = []string{r.ext4("muster-root")}
		r.enable()
		b := r.boot("rw muster.root=LABEL=muster-root init=/bin/../sbin/init")
		r.says(b, `handing over to /dev/vda \(ext4\): /bin/../sbin/init`)
		r.says(b, `root: can write`)
	})
	t.Run("a program", func(t *testing.T) {
		r := newRig(t)
		r.enable()
		image := filepath.Join(shortDir(t), "image.cpio.gz")
		script := filepath.Join(filepath.Dir(image), "next")
		if err := os.WriteFile(script, []byte(nextProgram), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := buildImage(image, "-file", script+":sbin/next", "-file", "/bin/busybox:bin/busybox"); err != nil {
			t.Fatal(err)
		}
		s := r.software("muster.exec=/sbin/next")
		s.Initrd = image
		b := r.off(s)
		r.says(b, `starting /sbin/next`)
		r.says(b, `next: I am 1, status 0`)
		r.says(b, `next: state    active`)
		r.says(b, `next: loop is loaded`) // as the kernel itself would ask for it
	})
	t.Run("no such disk", func(t *testing.T) {
		r := newRig(t)
		r.enable()
		r.golden("no-disk", r.boot("rootwait=2 muster.root=UUID=12345678-1234-1234-1234-123456789abc"))
	})
	t.Run("halfway", func(t *testing.T) {
		r := newRig(t)
		r.golden("misspelt", r.boot("muster.wait=8s muster.image=http://10.0.2.2/root"))
	})
}

// TestFailPolicies: what muster.fail says is done, and never a shell.
func TestFailPolicies(t *testing.T) {
	t.Run("continue", func(t *testing.T) {
		r := newRig(t)
		r.node.Disks = []string{r.disk("fail")}
		b := r.boot("muster.wait=8s muster.root=/dev/vda")
		r.golden("fail-continue", b)
		r.says(b, `root: I am 1`)
	})
	t.Run("reboot", func(t *testing.T) {
		r := newRig(t)
		r.golden("fail-reboot", r.boot("muster.wait=8s rd.muster.fail=reboot"))
	})
	t.Run("halt", func(t *testing.T) {
		r := newRig(t)
		ctx := within(t)
		b := r.power(ctx, "muster.wait=8s muster.fail=halt")
		if err := b.WaitFor(ctx, `hint: .*\n`); err != nil {
			t.Fatal(err)
		}
		r.golden("fail-halt", b)
	})
}
