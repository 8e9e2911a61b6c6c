package pid1

import "golang.org/x/sys/unix"

// mountKernel mounts the kernel's own file systems, and the /run that survives the hand-over.
func mountKernel() error {
	for _, m := range []struct {
		path, kind string
		flags      uintptr
		data       string
	}{
		{"/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
		{"/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
	} {
		if err := mountOn(m.path, m.kind, m.kind, m.data, m.flags); err != nil {
			return err
		}
	}
	return nil
}
