// Init is the first program of Muster's boot image. It is no program to start by hand: docs/boot.md has
// what it does and the words of the kernel command line that it obeys. The kernel also calls it by the name
// of modprobe.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"muster/initramfs/pid1"
)

// committed is when the source was committed, in Unix seconds: set by the build.
var committed = "0"

func main() {
	if filepath.Base(os.Args[0]) == "modprobe" {
		if err := pid1.Modprobe(os.Args); err != nil {
			fmt.Fprintln(os.Stderr, "modprobe:", err)
			os.Exit(1)
		}
		return
	}
	seconds, _ := strconv.ParseInt(committed, 10, 64) // 1970 raises no floor
	fmt.Fprintln(os.Stderr, "init:", pid1.Run(time.Unix(seconds, 0)))
	os.Exit(1)
}
