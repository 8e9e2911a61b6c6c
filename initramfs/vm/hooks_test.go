package vm_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestHooksRefuse: a builder that was told to put Muster into an image makes none without it, or with what is no
// CA's certificate, and says why.
func TestHooksRefuse(t *testing.T) {
	needFull(t, "dracut", "mkinitramfs")
	b := newBuilder(t, "/")
	b.install("no certificate\n")
	refuses := func(want string) {
		t.Helper()
		for _, args := range [][]string{
			{"dracut", "--force", "--no-hostonly", "--add", "muster", "--kver", b.release, "/boot/image"},
			{"mkinitramfs", "-o", "/boot/image", b.release},
		} {
			out, err := b.command(args[0], args[1:]...).CombinedOutput()
			if err == nil || !strings.Contains(string(out), want) {
				t.Errorf("%s: %v, without %q\n%s", args[0], err, want, out)
			}
			// mkinitramfs begins with an empty file.
			if info, err := os.Stat(filepath.Join(b.dir, "boot/image")); err == nil && info.Size() > 0 {
				t.Errorf("%s: there is an image of %d bytes", args[0], info.Size())
			}
		}
	}
	refuses("muster ca export")
	if err := os.Remove(filepath.Join(b.dir, "usr/bin/muster-agent")); err != nil {
		t.Fatal(err)
	}
	refuses("make install-boot")
}
