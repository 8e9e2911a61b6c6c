package pid1

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/u-root/u-root/pkg/mount"
	"golang.org/x/sys/unix"
)

// mountDisk mounts the root that muster.root names: a device, or UUID=, LABEL= or PARTLABEL=. What can
// only be read gets a tmpfs over it, to be written to.
func (n *node) mountDisk() (what string, err error) {
	device, err := n.awaitDisk()
	if err != nil {
		return "", err
	}
	fstype := n.fstype
	if fstype == "" {
		sb, err := identify(device)
		if err != nil {
			return "", fmt.Errorf("%s: %w", device, err)
		}
		fstype = sb.fstype
	}
	if fstype == "squashfs" || fstype == "erofs" {
		return fmt.Sprintf("%s (%s, written to memory)", device, fstype), n.overlay(device, fstype)
	}
	if err := n.drivers.load(fstype); err != nil {
		return "", err
	}
	flags := uintptr(unix.MS_RDONLY)
	if n.rw {
		flags = 0
	}
	return fmt.Sprintf("%s (%s)", device, fstype), mountOn(newRoot, device, fstype, n.flags, flags)
}

// awaitDisk waits for the disk that muster.root names: controllers take their time.
func (n *node) awaitDisk() (device string, err error) {
	for end := time.Now().Add(n.rootWait); ; time.Sleep(lookEvery) {
		n.drivers.coldplug()
		if device = findDisk(n.root); device != "" {
			return device, nil
		}
		if time.Now().After(end) {
			return "", fmt.Errorf("no such disk after %v", n.rootWait)
		}
	}
}

// mountOn mounts a device on a directory that need not be there.
func mountOn(dir, device, fstype, data string, flags uintptr) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	_, err := mount.Mount(device, dir, fstype, data, flags)
	return err
}

func mountTmpfs(dir string) error { return mountOn(dir, "tmpfs", "tmpfs", "mode=0755", 0) }

// overlay mounts what can only be read at newRoot, with a tmpfs over it.
func (n *node) overlay(device, fstype string) error {
	for _, name := range []string{fstype, "overlay"} {
		if err := n.drivers.load(name); err != nil {
			return err
		}
	}
	if err := mountOn("/lower", device, fstype, "", unix.MS_RDONLY); err != nil {
		return err
	}
	if err := mountTmpfs("/upper"); err != nil {
		return err
	}
	for _, dir := range []string{"/upper/data", "/upper/work"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	return mountOn(newRoot, "overlay", "overlay", "lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work", 0)
}

// findDisk returns the device that name stands for, "" while there is none.
func findDisk(name string) string {
	key, value, tagged := strings.Cut(name, "=")
	if !tagged {
		if info, err := os.Stat(name); err == nil && info.Mode()&os.ModeDevice != 0 {
			return name
		}
		return ""
	}
	blocks, _ := filepath.Glob("/sys/class/block/*")
	for _, block := range blocks {
		device := "/dev/" + filepath.Base(block)
		switch key {
		case "UUID", "LABEL":
			sb, err := identify(device)
			if err == nil && (key == "UUID" && strings.EqualFold(sb.uuid, value) || key == "LABEL" && sb.label == value) {
				return device
			}
		case "PARTLABEL":
			if text, err := os.ReadFile(filepath.Join(block, "uevent")); err == nil && strings.Contains("\n"+string(text), "\nPARTNAME="+value+"\n") {
				return device
			}
		}
	}
	return ""
}

// superblock is what a file system says of itself.
type superblock struct{ fstype, uuid, label string }

// identify reads a superblock: of ext2 to ext4 (Linux, fs/ext4/ext4.h), xfs (fs/xfs/libxfs/xfs_format.h),
// btrfs (include/uapi/linux/btrfs_tree.h), erofs (fs/erofs/erofs_fs.h) or squashfs, which has no names.
func identify(device string) (*superblock, error) {
	f, err := os.Open(device)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, 68<<10)
	if n, err := io.ReadFull(f, b); n < 2<<10 {
		return nil, err
	}
	text := func(b []byte) string { return strings.TrimRight(string(b), "\x00") }
	uuid := func(b []byte) string { return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16]) }
	const k1, k64 = 1 << 10, 64 << 10
	switch {
	case string(b[:4]) == "hsqs":
		return &superblock{fstype: "squashfs"}, nil
	case string(b[:4]) == "XFSB":
		return &superblock{"xfs", uuid(b[32:]), text(b[108:120])}, nil
	case b[k1+56] == 0x53 && b[k1+57] == 0xEF:
		return &superblock{"ext4", uuid(b[k1+104:]), text(b[k1+120 : k1+136])}, nil
	case string(b[k1:k1+4]) == "\xE2\xE1\xF5\xE0":
		return &superblock{"erofs", uuid(b[k1+48:]), text(b[k1+64 : k1+80])}, nil
	case string(b[k64+64:k64+72]) == "_BHRfS_M":
		return &superblock{"btrfs", uuid(b[k64+32:]), text(b[k64+299 : k64+299+256])}, nil
	}
	return nil, errors.New("no file system that is known: name it by rootfstype=")
}
