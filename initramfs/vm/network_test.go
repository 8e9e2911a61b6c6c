package vm_test

import (
	"os"
	"strings"
	"testing"

	"muster/initramfs/vm"
)

// TestNetworkBoot: iPXE fetches the script that we ship, and with it kernel and image, over HTTP; then the
// node enrols, and comes back.
func TestNetworkBoot(t *testing.T) {
	r := newRig(t)
	r.enable()
	script, err := os.ReadFile("../ipxe/boot.ipxe")
	if err != nil {
		t.Fatal(err)
	}
	server := &vm.NetBoot{
		Script: string(script), Kernel: parts.kernel, Image: parts.image, Head: r.head,
		Words: "console=ttyS0 panic=-1 quiet loglevel=1 muster.node=n0",
	}
	nic, err := server.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	r.node.NICs = []string{nic}
	r.node.Memory = 768
	r.golden("first", r.off(vm.Software{}))
	r.is("active")
	r.golden("second", r.off(vm.Software{}))
}

// TestNetworkWords: the network comes up as the kernel command line says.
func TestNetworkWords(t *testing.T) {
	t.Run("two links", func(t *testing.T) {
		r := newRig(t)
		// Either may be the first, and the head and the name are behind the second.
		r.node.NICs = []string{"net=10.0.3.0/24", "hostname=n0"}
		r.enable()
		b := r.boot("muster.node=")
		r.says(b, `network: eth1 has 10\.0\.2\.15/24`)
		r.says(b, `n0: enrolled at`)
	})
	t.Run("BOOTIF", func(t *testing.T) {
		r := newRig(t)
		r.node.NICs = []string{"net=10.0.3.0/24", ""}
		r.enable()
		b := r.boot("BOOTIF=01-52-54-00-4d-55-02")
		r.says(b, `network: eth1 has 10\.0\.2\.15/24`)
		r.says(b, `n0: enrolled at`)
		if strings.Contains(b.Text(), "eth0") {
			t.Errorf("the other link was touched:\n%s", b.Text())
		}
	})
	t.Run("ip", func(t *testing.T) {
		r := newRig(t)
		r.enable()
		b := r.boot("muster.node= ip=10.0.2.77::10.0.2.2:255.255.255.0:n0:eth0:none")
		r.says(b, `network: eth0 has 10\.0\.2\.77/24 from the kernel command line`)
		r.says(b, `n0: enrolled at`)
	})
	t.Run("none", func(t *testing.T) {
		r := newRig(t)
		r.golden("no-network", r.boot("ip=off muster.wait=15s"))
	})
	t.Run("misspelt", func(t *testing.T) {
		r := newRig(t)
		r.golden("misspelt-ip", r.boot("ip=10.0.2.x:::24::eth0:none"))
	})
}
