package vm

import (
	"fmt"
	"path/filepath"
)

// Kernel finds what .ci/kernel has unpacked into dir, bin/vm/kernel/FLAVOUR: the image, and the directory of its
// modules, whose name is the release.
func Kernel(dir string) (image, modules string, err error) {
	if dir, err = filepath.Abs(dir); err != nil {
		return "", "", err
	}
	found, err := filepath.Glob(filepath.Join(dir, "lib/modules/*"))
	if err != nil || len(found) != 1 {
		return "", "", fmt.Errorf("kernel in %s: %v, %v", dir, found, err)
	}
	return filepath.Join(dir, "boot/vmlinuz-"+filepath.Base(found[0])), found[0], nil
}
