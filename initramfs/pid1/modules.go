package pid1

import (
	"errors"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"muster/initramfs/modules"
)

// drivers loads the image's kernel modules; the zero value is of an image that has none, for a kernel that
// needs none.
type drivers struct{ loader *modules.Loader }

func openDrivers(line string) (*drivers, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return &drivers{}, err
	}
	l, err := modules.Open("/lib/modules/"+unix.ByteSliceToString(u.Release[:]), line, modules.Finit)
	if errors.Is(err, fs.ErrNotExist) {
		return &drivers{}, nil
	}
	if err != nil {
		return &drivers{}, err
	}
	return &drivers{l}, nil
}

// Modprobe is what the kernel runs, as /sbin/modprobe, when it wants a module itself: for a file system that
// is to be mounted, say.
func Modprobe(args []string) error {
	if len(args) == 0 {
		return errors.New("no module is named")
	}
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	d, err := openDrivers(string(line))
	if err != nil {
		return err
	}
	return d.load(args[len(args)-1])
}

// coldplug loads what the machine's devices need, and names it.
func (d *drivers) coldplug() (loaded string, err error) {
	if d.loader == nil {
		return "", nil
	}
	names, errs := d.loader.Devices("/sys")
	return strings.Join(names, " "), errors.Join(errs...)
}

// load loads a file system or the like. The kernel may have it without a module, so that the mount is what
// tells.
func (d *drivers) load(name string) error {
	if d.loader == nil {
		return nil
	}
	if err := d.loader.Load(name); err != nil && !errors.Is(err, modules.ErrUnknown) {
		return err
	}
	return nil
}
