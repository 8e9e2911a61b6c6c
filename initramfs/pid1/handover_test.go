package pid1

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"muster/agent"
)

const sum = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

func TestParseHandover(t *testing.T) {
	for line, want := range map[string]func(*handover) bool{
		"":                               func(h *handover) bool { return h.nowhere() && h.onFail == failContinue && h.init == "/sbin/init" },
		"muster.root=LABEL=x rw init=/i": func(h *handover) bool { return h.root == "LABEL=x" && h.rw && h.init == "/i" && !h.nowhere() },
		"rw ro rootfstype=xfs rootflags=nobarrier": func(h *handover) bool { return !h.rw && h.fstype == "xfs" && h.flags == "nobarrier" },
		"rootwait rd.muster.root=/dev/vda":         func(h *handover) bool { return h.root == "/dev/vda" && h.rootWait == 30*time.Second },
		"rootwait=3":                               func(h *handover) bool { return h.rootWait == 3*time.Second },
		"muster.exec=/x muster.shell=1":            func(h *handover) bool { return h.exec == "/x" && h.shell },
		"muster.shell=0 muster.fail=halt":          func(h *handover) bool { return !h.shell && h.onFail == failHalt && h.policy() == failHalt },
		"muster.image=https://h/x muster.image-sha256=sha256:" + sum: func(h *handover) bool {
			return h.image.Host == "h" && h.sum[0] == 0x9f && h.policy() == failReboot
		},
	} {
		h, err := parseHandover(line)
		if err != nil || !want(h) {
			t.Errorf("%s: %+v, %v", line, h, err)
		}
	}
	for _, bad := range []string{
		"muster.image=http://h/x muster.image-sha256=" + sum, "muster.image=https://h/x",
		"muster.image=https://h/x muster.image-sha256=00", "muster.root=/dev/sda muster.exec=/x",
		"muster.image=https://h/x muster.exec=/x muster.image-sha256=" + sum,
	} {
		h, err := parseHandover(bad)
		if agent.ExitStatus(err) != agent.StatusConfig || !strings.Contains(agent.Describe(err), "\nhint: ") || h == nil {
			t.Errorf("%s: %+v, %v", bad, h, err)
		}
	}
	// What can be read holds beside what cannot.
	if h, err := parseHandover("muster.fail=halt muster.image=x muster.root=/dev/vda"); err == nil || h.onFail != failHalt || h.root != "/dev/vda" {
		t.Errorf("%+v, %v", h, err)
	}
	// A node should boot: a slip of the hand is a warning and the default. A shell that was not asked for in so many
	// words is none.
	for _, slip := range []string{"muster.fail=rebooot", "muster.shell=yes", "rd.muster=0"} {
		h, err := parseHandover(slip + " muster.root=/dev/vda")
		if err != nil || len(h.warnings) != 1 || h.shell || h.onFail != failContinue || h.root != "/dev/vda" {
			t.Errorf("%s: %+v, %v", slip, h, err)
		}
	}
}

func FuzzHandover(f *testing.F) {
	f.Add("muster.root=LABEL=x rw init=/i muster.fail=halt")
	f.Add("muster.image=https://h/x muster.image-sha256=" + sum)
	f.Fuzz(func(t *testing.T, line string) {
		h, err := parseHandover(line)
		if h == nil || h.image != nil && (h.image.Scheme != "https" || h.sum == [32]byte{}) && err == nil && !strings.Contains(line, strings.Repeat("0", 64)) {
			t.Errorf("%q: %+v, %v", line, h, err)
		}
	})
}

// TestIdentify: superblocks that the file systems' own tools have written.
func TestIdentify(t *testing.T) {
	for _, c := range []struct {
		want superblock
		make string
	}{
		{superblock{"ext4", "12345678-9abc-def0-1234-56789abcdef0", "root"}, "mke2fs -q -t ext4 -U 12345678-9abc-def0-1234-56789abcdef0 -L root $F 4M"},
		{superblock{fstype: "squashfs"}, "mksquashfs /dev/null $F -quiet -no-progress"},
	} {
		file := filepath.Join(t.TempDir(), "fs")
		if err := shell(strings.ReplaceAll(c.make, "$F", file)); err != nil {
			if os.Getenv("CI") != "" {
				t.Error(err)
			}
			t.Logf("left out: %v", err)
			continue
		}
		if got, err := identify(file); err != nil || *got != c.want {
			t.Errorf("%s: %+v, %v", c.make, got, err)
		}
	}
	file := filepath.Join(t.TempDir(), "none")
	for _, size := range []int{0, 100, 4 << 10, 1 << 20} {
		if err := os.WriteFile(file, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := identify(file); err == nil {
			t.Errorf("%d zero bytes are %+v", size, got)
		}
	}
}

func shell(command string) error {
	if out, err := exec.Command("sh", "-c", command).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %v: %s", command, err, out)
	}
	return nil
}
