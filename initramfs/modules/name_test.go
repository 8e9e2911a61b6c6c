package modules

import "testing"

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"pci:v00008086d00001533sv*sd*bc*sc*i*", "pci:v00008086d00001533sv00001849sd00001533bc02sc00i00", true},
		{"pci:v00008086d00001533sv*sd*bc*sc*i*", "pci:v00008086d00001534sv00001849sd00001533bc02sc00i00", false},
		{"pci:v*d*sv*sd*bc01sc06i01*", "pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01", true},
		{"usb:v152Dp0567d011[4-7]dc*", "usb:v152Dp0567d0115dc00", true},
		{"usb:v152Dp0567d011[4-7]dc*", "usb:v152Dp0567d0118dc00", false},
		{"dmi*:svn*U90/U100*:", "dmi:bvn:svnMSI/U90/U100/x:", true},
		{"acpi*:MSFT0101:*", "acpi:MSFT0101:", true},
		{"fs-xfs", "fs_xfs", true},
		{"fs-xfs", "fs-xfs2", false},
		{"platform:a_b[a-c]", "platform:a-bb", true},
		{"platform:x[+-.]", "platform:x,", true},
		{"net-pf-16-proto-16-family-*", "net-pf-16-proto-16-family-a/b", true},
		{"?", "/", true},
		{"broken[", "broken[", false},
		{"", "", true},
	} {
		if got := Match(c.pattern, c.name); got != c.want {
			t.Errorf("Match(%q, %q) = %v", c.pattern, c.name, got)
		}
	}
}

func TestName(t *testing.T) {
	for file, want := range map[string]string{
		"kernel/drivers/net/virtio_net.ko":            "virtio_net",
		"kernel/drivers/net/ethernet/amd/amd-xgbe.ko": "amd_xgbe",
		"updates/a-b.ko.xz":                           "a_b",
	} {
		if got := Name(file); got != want {
			t.Errorf("Name(%q) = %q", file, got)
		}
	}
}

func TestParams(t *testing.T) {
	got := params(`quiet muster.head=https://h igb.max_vfs=2 amd-xgbe.x="a b" igb.flag "e1000e.y=c d" .a =b. console=ttyS0`)
	for module, want := range map[string]string{
		"igb": "max_vfs=2 flag", "amd_xgbe": `x="a b"`, "e1000e": `"y=c d"`, "muster": "head=https://h", "console": "", "": "",
	} {
		if got[module] != want {
			t.Errorf("parameters of %q: %q, want %q", module, got[module], want)
		}
	}
}
