// Package pid1 is the first program of Muster's boot image: it brings a node from the kernel's hands to
// its certificate, and on to the system that runs there.
//
// It holds one invariant: it always ends as it was told to on the kernel command line. The node goes on
// to the root that was named, or is powered off, rebooted or halted, whatever fails on the way; a shell is
// opened only when muster.shell=1 asks for one.
//
// The files follow the flow: mounts, modules, network (with ip.go, what the kernel command line says of
// it), the agent's run, and the hand-over: disk (muster.root), image (muster.image) or a site's own
// program (muster.exec). Console is what a person sees of it.
package pid1

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"muster/agent"
)

// node is one boot.
type node struct {
	began   time.Time
	built   time.Time // lowest time that can be
	console *console
	line    string // the kernel command line
	*handover
	drivers *drivers
	network *network // nil before there is any
	agent   *agent.Agent
	status  int // the agent's exit status
}

// Run boots the node. It returns only an error that says that this is no first program.
//
//  1. Mount what the kernel offers, and read its command line.
//  2. Load the drivers of what this machine has.
//  3. Bring the network up, and meanwhile begin with the TPM: the agent asks for the network when it
//     needs it.
//  4. Hand over, or do what muster.fail says.
//
// Built is when the image's source was committed.
func Run(built time.Time) error {
	if os.Getpid() != 1 {
		return errors.New("this is the init of a boot image, and no program to be started by hand")
	}
	log.SetOutput(io.Discard) // u-root's packages narrate
	n := &node{began: time.Now(), built: built, console: &console{w: os.Stdout}, drivers: &drivers{}, handover: defaultHandover()}
	n.boot()
	return nil
}

// boot does not return: it ends in another program, or in a machine that is off.
func (n *node) boot() {
	defer func() { // a panic must not take the kernel down without a word
		if p := recover(); p != nil {
			n.giveUp(fmt.Errorf("internal error: %v\n%s", p, debug.Stack()), "", n.lastResort())
		}
	}()
	err := n.start()
	if err == nil {
		err = n.enrol()
	}
	if err != nil {
		n.status = agent.ExitStatus(err)
		n.giveUp(err, fmt.Sprintf(" (status %d)", n.status), n.policy())
	}
	n.giveUp(n.handOver(), "", n.lastResort())
}

// start does what comes before the agent.
func (n *node) start() error {
	if err := mountKernel(); err != nil {
		return err
	}
	n.console.openKmsg()
	// Where this program dies all the same, the machine reboots instead of standing there dead.
	_ = os.WriteFile("/proc/sys/kernel/panic", []byte("10"), 0o644)
	text, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	n.line = string(text)
	n.coldplug()
	// What can be read of it holds even where there is an error.
	n.handover, err = parseHandover(n.line)
	for _, w := range n.warnings {
		n.console.say("kernel command line: %s", w)
	}
	return err
}

func (n *node) coldplug() {
	var err error
	if n.drivers, err = openDrivers(n.line); err != nil {
		n.console.say("kernel modules: %v", err)
	}
	loaded, err := n.drivers.coldplug()
	if err != nil { // the others may be all that is needed
		n.console.say("kernel modules: %v", err)
	}
	if loaded != "" {
		n.console.say("drivers: %s", loaded)
	}
}

// enrol is the agent's part.
func (n *node) enrol() error {
	links, err := parseIP(n.line)
	if err != nil {
		return &agent.Outcome{Status: agent.StatusConfig, Message: err.Error(), Hint: "write ip=dhcp, or ip=ADDRESS::GATEWAY:NETMASK::DEVICE:none"}
	}
	var ctx context.Context
	n.network, ctx = startNetwork(links, n.console)
	n.agent, err = agent.New(agent.Config{
		Built: n.built, Online: n.network.online, Log: slog.New(n.console.handler()),
	})
	if err != nil {
		return err
	}
	line, err := n.agent.Run(ctx)
	if err == nil {
		n.console.say("%s", line)
	}
	return err
}

// giveUp says what went wrong and does what a policy says. It returns where that is to go on.
func (n *node) giveUp(err error, status string, p policy) {
	n.tell(err, status, n.sentence(p))
	if n.shell {
		n.openShell()
	}
	if p != failContinue {
		n.end(p)
	}
}

// tell puts an error in front of a person: what happened, what happens now and, last, what to do.
func (n *node) tell(err error, status, now string) {
	message, hint, _ := strings.Cut(strings.TrimSuffix(agent.Describe(err), "\n"), "\nhint: ")
	n.console.say("%s%s", message, status)
	n.console.say("%s", now)
	if hint != "" {
		n.console.say("hint: %s", hint)
	}
}

// took is how long all this took, and how much time of processors, of which there may be several: the rest is
// waiting for TPM, network and head.
func (n *node) took() string {
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		return ""
	}
	own := time.Duration(used.Utime.Nano() + used.Stime.Nano())
	return fmt.Sprintf(", after %.2f s (%.2f s of processor time)", time.Since(n.began).Seconds(), own.Seconds())
}

const shellFile = "/bin/sh"

// openShell is for a person at the console, and only where the kernel command line asked for it.
func (n *node) openShell() {
	if _, err := os.Stat(shellFile); err != nil {
		n.console.say("muster.shell=1: there is no %s in this image; make initramfs FILES=… puts one there", shellFile)
		return
	}
	n.console.say("muster.shell=1: a shell, until it ends")
	p, err := os.StartProcess(shellFile, []string{"sh"}, &os.ProcAttr{
		Env: environ, Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
	})
	if err != nil {
		n.console.say("it does not start: %v", err)
		return
	}
	p.Wait()
}

// environ is what programs that are started get.
var environ = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/bbin", "HOME=/", "TERM=linux"}

// quiet ends what the network's clients do.
func (n *node) quiet() {
	if n.network != nil {
		n.network.quiet()
	}
}

// end leaves this machine in the state that a policy asks for.
func (n *node) end(p policy) {
	unix.Sync()
	how := unix.LINUX_REBOOT_CMD_POWER_OFF
	switch p {
	case failReboot:
		time.Sleep(rebootPause)
		how = unix.LINUX_REBOOT_CMD_RESTART
	case failHalt:
		how = unix.LINUX_REBOOT_CMD_HALT
	}
	n.quiet()
	linksDown()
	unix.Reboot(how)
	select {} // an init that returns is a kernel panic
}
