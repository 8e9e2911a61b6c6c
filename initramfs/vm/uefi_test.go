package vm_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"muster/initramfs/vm"
)

// iPXE is where Debian has its programs.
const iPXE = "/usr/lib/ipxe/"

// netboot is a site whose head's machine serves all that a node boots from, as our examples have it: DHCP by
// dnsmasq.conf, kernel, image and boot.ipxe, and files beside them.
func netboot(t *testing.T, conf func(string) string, files map[string]string) *rig {
	t.Helper()
	r, home := newSite(t)
	for _, file := range []string{iPXE + "ipxe.efi", iPXE + "undionly.kpxe"} {
		needFile(t, file)
	}
	r.node.Memory = 1024
	home.dnsmasq(conf(ours(t)))
	script, err := os.ReadFile("../ipxe/boot.ipxe")
	if err != nil {
		t.Fatal(err)
	}
	server := &vm.NetBoot{
		Script: string(script), Kernel: parts.kernel, Image: parts.image, Head: r.head, Words: quiet,
		Files: files, Listen: "10.54.0.1:8000",
	}
	home.run(func() {
		_, err = server.Start()
		home.must(err)
	})
	t.Cleanup(server.Stop)
	return r
}

// quiet leaves the console to Muster. The node's name comes from dnsmasq.
const quiet = "console=ttyS0 panic=-1 quiet loglevel=1"

func needFile(t *testing.T, file string) {
	t.Helper()
	if _, err := os.Stat(file); err != nil {
		lacks(t, "%s is not there", file)
	}
}

func asShipped(conf string) string { return conf }

// comesBack boots once more, straight into the kernel: certificate and key are in the TPM, whatever firmware
// there was.
func (r *rig) comesBack() {
	r.Helper()
	first := r.is("active")
	r.says(r.boot("muster.node="), `n0: certificate .* confirmed by https://10\.54\.0\.1:8443`)
	if again := r.is("active"); again != first {
		r.Errorf("the second boot has another certificate: %+v, %+v", again, first)
	}
}

// TestBIOSNetworkBoot: iPXE, which is in the network card's ROM, and our example for dnsmasq.
func TestBIOSNetworkBoot(t *testing.T) {
	r := netboot(t, asShipped, nil)
	r.says(r.off(vm.Software{}), `n0: enrolled at https://10\.54\.0\.1:8443`)
	r.comesBack()
}

// TestUEFIHTTPBoot: the firmware fetches iPXE, and iPXE the rest, all over HTTP.
func TestUEFIHTTPBoot(t *testing.T) {
	r := netboot(t, asShipped, map[string]string{"/ipxe.efi": iPXE + "ipxe.efi"})
	needFile(t, "/usr/share/OVMF/OVMF_CODE_4M.fd")
	r.node.UEFI = true
	r.says(r.off(vm.Software{}), `n0: enrolled at https://10\.54\.0\.1:8443`)
	r.comesBack()
}

// TestUKI: the firmware fetches one file over HTTP, made as docs/boot.md says, and there is nothing else to fetch.
func TestUKI(t *testing.T) {
	uki := filepath.Join(shortDir(t), "muster.efi")
	r := netboot(t, func(conf string) string { return strings.ReplaceAll(conf, "8000/ipxe.efi", "8000/muster.efi") },
		map[string]string{"/muster.efi": uki})
	needFile(t, "/usr/share/OVMF/OVMF_CODE_4M.fd")
	needFile(t, "/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
	d := newDocument(t, r.ca())
	d.run("UKI")
	r.tool("mv", filepath.Join(d.dir, "src/bin/muster.efi"), uki)
	r.node.UEFI, r.node.Disks = true, []string{r.ext4("root")}
	b := r.off(vm.Software{})
	r.says(b, `n0: enrolled at https://10\.54\.0\.1:8443`)
	r.says(b, `root: /run/muster has ca.pem`)
	r.comesBack()
}

// TestUKITwice: the same parts give the same bytes, whenever they are put together.
func TestUKITwice(t *testing.T) {
	needFull(t, "objcopy")
	dir := shortDir(t)
	var made [2][]byte
	for i := range made {
		file := filepath.Join(dir, "uki")
		if err := command(".", "../uki.sh", parts.kernel, parts.image, "quiet", file); err != nil {
			t.Fatal(err)
		}
		var err error
		if made[i], err = os.ReadFile(file); err != nil {
			t.Fatal(err)
		}
		time.Sleep(1100 * time.Millisecond) // the header's clock counts seconds
	}
	if !bytes.Equal(made[0], made[1]) {
		t.Error("two makings differ")
	}
}
