// Init is the first program of Muster's boot image. It is no program to start by hand: docs/boot.md has
// what it does and the words of the kernel command line that it obeys. Under other names it is what else the
// image needs: muster-agent, for a site's own program, and the modprobe that the kernel calls.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"muster/agent/cli"
	"muster/initramfs/pid1"
)

// version and committed (when, in Unix seconds) are set by the build.
var version, committed = "devel", "0"

func main() { os.Exit(run(filepath.Base(os.Args[0]), os.Args[1:])) }

func run(name string, args []string) int {
	var err error
	switch name {
	case "muster-agent":
		p := cli.Program{Version: version, Built: cli.CommitTime(committed), Stdout: os.Stdout, Stderr: os.Stderr}
		return p.Run(context.Background(), args)
	case "modprobe":
		err = pid1.Modprobe(args)
	default:
		err = pid1.Run(cli.CommitTime(committed))
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		return 1
	}
	return 0
}
