// Init is pid 1 of a virtual machine: it loads what the machine's devices need, then what muster.load= names,
// tells what came of it on the console, and powers off.
package main

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"muster/initramfs/modules"
)

func main() {
	defer unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	for dir, kind := range map[string]string{"/proc": "proc", "/sys": "sysfs", "/dev": "devtmpfs"} {
		os.Mkdir(dir, 0o755)
		unix.Mount(kind, dir, kind, 0, "")
	}
	console, _ := os.OpenFile("/dev/console", os.O_RDWR, 0)
	say := func(what string, about ...any) { fmt.Fprintln(console, append([]any{"init:", what}, about...)...) }

	var kernel unix.Utsname
	unix.Uname(&kernel)
	cmdline, _ := os.ReadFile("/proc/cmdline")
	l, err := modules.Open("/lib/modules/"+unix.ByteSliceToString(kernel.Release[:]), string(cmdline), modules.Finit)
	if err != nil {
		say("error", err)
		return
	}
	loaded, errs := l.Devices("/sys")
	for _, name := range loaded {
		say("loaded", name)
	}
	for _, err := range errs {
		say("error", err)
	}
	for _, word := range strings.Fields(string(cmdline)) {
		if name, ok := strings.CutPrefix(word, "muster.load="); ok {
			say("load", name, l.Load(name))
		}
	}
	// A second loader knows nothing of the first: all that is there already is no error.
	again, _ := modules.Open("/lib/modules/"+unix.ByteSliceToString(kernel.Release[:]), "", modules.Finit)
	_, errs = again.Devices("/sys")
	say("again", len(errs))

	links, _ := os.ReadDir("/sys/class/net")
	for _, link := range links {
		driver, _ := os.Readlink("/sys/class/net/" + link.Name() + "/device/driver")
		say("link", driver[strings.LastIndex(driver, "/")+1:])
	}
	filesystems, _ := os.ReadFile("/proc/filesystems")
	for name := range strings.FieldsSeq(string(filesystems)) {
		say("filesystem", name)
	}
	copybreak, _ := os.ReadFile("/sys/module/e1000e/parameters/copybreak")
	say("copybreak", strings.TrimSpace(string(copybreak)))
}
