// Init is the first program of Muster's boot image. It is no program to start by hand: docs/boot.md has
// what it does and the words of the kernel command line that it obeys.
package main

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"muster/initramfs/pid1"
)

// committed is when the source was committed, in Unix seconds: set by the build.
var committed = "0"

func main() {
	seconds, _ := strconv.ParseInt(committed, 10, 64) // 1970 raises no floor
	fmt.Fprintln(os.Stderr, "init:", pid1.Run(time.Unix(seconds, 0)))
	os.Exit(1)
}
