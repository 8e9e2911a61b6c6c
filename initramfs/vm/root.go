package vm

import (
	"os"
	"path/filepath"
)

// rootTools are busybox's names in a Root.
var rootTools = []string{"sh", "cat", "date", "ip", "ls", "poweroff", "sed"}

// Root fills dir with a root file system that is just large enough to say what it finds: busybox, and init
// as /sbin/init. Files are others to put in, by their path in the root.
func Root(dir, init string, files map[string]string) error {
	for _, d := range []string{"bin", "sbin", "dev", "proc", "sys", "run", "etc"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "sbin/init"), []byte(init), 0o755); err != nil {
		return err
	}
	for _, name := range rootTools {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", name)); err != nil {
			return err
		}
	}
	for to, from := range files {
		if err := copyFile(filepath.Join(dir, to), from); err != nil {
			return err
		}
	}
	return copyFile(filepath.Join(dir, "bin/busybox"), "/bin/busybox")
}

func copyFile(to, from string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755)
}
