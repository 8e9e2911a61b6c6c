package pid1

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/u-root/u-root/pkg/mount"

	"muster/agent"
	"muster/agent/cmdline"
)

// handover is how this initramfs ends, as the kernel command line has it.
type handover struct {
	root   string   // muster.root: what holds the root
	image  *url.URL // muster.image
	sum    [32]byte // muster.image-sha256
	exec   string   // muster.exec
	onFail policy   // muster.fail
	shell  bool     // muster.shell

	kernelRoot string   // root=, which other images hear
	warnings   []string // words that make no sense; a node should boot

	// The kernel's own words for a root.
	fstype, flags string
	rw            bool
	init          string
	rootWait      time.Duration // for the disk to appear
}

// policy is muster.fail: what to do when the node has no certificate.
type policy string

const (
	failContinue policy = "continue" // with the hand-over, without a certificate
	failReboot   policy = "reboot"
	failHalt     policy = "halt"
)

// sentence says what happens now.
func (h *handover) sentence(p policy) string {
	switch {
	case p == failReboot:
		return "rebooting in " + rebootPause.String()
	case p == failHalt:
		return "halted"
	case h.nowhere():
		return "no root is named, and nothing to go on to: switching off"
	}
	return "going on without a certificate"
}

// policy is what to do about a node without a certificate. It cannot fetch an image, so that there is
// nothing to go on with.
func (h *handover) policy() policy {
	if h.onFail == failContinue && h.image != nil {
		return failReboot
	}
	return h.onFail
}

// lastResort is the policy where there is nothing to go on to any more.
func (h *handover) lastResort() policy {
	if h.onFail == failHalt {
		return failHalt
	}
	return failReboot
}

const handoverHint = "on the kernel command line: one of muster.root=DEVICE, muster.image=https://… with muster.image-sha256=HEX, or muster.exec=PROGRAM"

func badHandover(format string, args ...any) error {
	return &agent.Outcome{Status: agent.StatusConfig, Message: "kernel command line: " + fmt.Sprintf(format, args...), Hint: handoverHint}
}

func defaultHandover() *handover {
	return &handover{onFail: failContinue, init: "/sbin/init", rootWait: 30 * time.Second}
}

// parseHandover reads the words that say how to end. What it could read is in the handover even where
// there is an error.
func parseHandover(line string) (*handover, error) {
	h := defaultHandover()
	for _, w := range cmdline.Parse(line) {
		switch w.Name {
		case "rd.muster":
			h.warnings = append(h.warnings, "rd.muster= is for the hooks in other systems' images; this one goes on")
		case "root":
			h.kernelRoot = w.Value
		case "init":
			h.init = w.Value
		case "rootfstype":
			h.fstype = w.Value
		case "rootflags":
			h.flags = w.Value
		case "rootwait": // without a value it is for ever there, and here as long as usual
			if n, err := strconv.ParseUint(w.Value, 10, 16); err == nil {
				h.rootWait = time.Duration(n) * time.Second
			}
		case "ro", "rw":
			h.rw = w.Name == "rw"
		}
	}
	ours := cmdline.Handover(line)
	h.root, h.exec = ours["root"], ours["exec"]
	h.parsePolicy(ours["shell"], policy(ours["fail"]))
	return h, cmp.Or(h.parseImage(ours["image"], ours["image-sha256"]), h.one())
}

// parsePolicy takes the default for what it does not know.
func (h *handover) parsePolicy(shell string, fail policy) {
	switch shell {
	case "", "0", "1":
		h.shell = shell == "1"
	default:
		h.warnings = append(h.warnings, fmt.Sprintf("muster.shell=%s is neither 1 nor 0: no shell", shell))
	}
	switch fail {
	case failContinue, failReboot, failHalt:
		h.onFail = fail
	case "":
	default:
		h.warnings = append(h.warnings, fmt.Sprintf("muster.fail=%s is none of continue, reboot and halt: %s", fail, h.onFail))
	}
}

// one refuses a choice of ends.
func (h *handover) one() error {
	if h.root != "" && (h.image != nil || h.exec != "") || h.image != nil && h.exec != "" {
		return badHandover("more than one of muster.root, muster.image and muster.exec")
	}
	return nil
}

func (h *handover) parseImage(image, sum string) error {
	if image == "" {
		return nil
	}
	u, err := url.Parse(image)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" {
		return badHandover("muster.image=%s: not an https URL", image)
	}
	b, err := hex.DecodeString(strings.TrimPrefix(sum, "sha256:"))
	if err != nil || len(b) != len(h.sum) {
		return badHandover("muster.image needs muster.image-sha256= with 64 hex digits")
	}
	h.image, h.sum = u, [32]byte(b)
	return nil
}

// newRoot is where the root is mounted that takes over.
const newRoot = "/sysroot"

// handOver ends this program by becoming another, or switches the machine off where none was named. It
// returns only an error.
func (n *node) handOver() error {
	switch {
	case n.exec != "":
		n.quiet()
		n.console.say("starting %s%s", n.exec, n.took())
		env := append(environ, fmt.Sprintf("MUSTER_STATUS=%d", n.status))
		return n.cannot("muster.exec="+n.exec, unix.Exec(n.exec, []string{n.exec}, env), "put it into the image (make initramfs FILES=FROM:TO), with what it needs")
	case n.root != "":
		what, err := n.mountDisk()
		if err != nil {
			return n.cannot("muster.root="+n.root, err, "see that the disk is there, its driver and file system are in the image (make initramfs MODULES=…), and its name is right")
		}
		return n.switchRoot(what)
	case n.image != nil:
		what, err := n.mountImage()
		if err != nil {
			return n.cannot("muster.image="+n.image.String(), err, "see that the server has this image and knows the cluster's CA, and that muster.image-sha256= is the image's")
		}
		return n.switchRoot(what)
	}
	if n.status == 0 { // else it has been said
		n.console.say("%s%s", n.sentence(failContinue), n.took())
	}
	if n.kernelRoot != "" {
		n.console.say("hint: root= is for other images; this one wants muster.root=%s on the kernel command line", n.kernelRoot)
	}
	n.end(failContinue)
	return nil
}

// cannot is the outcome of a hand-over that failed. What the agent says of it comes first.
func (n *node) cannot(what string, err error, hint string) error {
	var o *agent.Outcome
	if errors.As(err, &o) && o.Hint != "" {
		hint = o.Hint
	}
	_, value, _ := strings.Cut(what, "=")
	reason := strings.TrimPrefix(err.Error(), value+": ") // the agent names the URL as well
	return &agent.Outcome{Status: agent.StatusTryAgain, Message: what + ": " + reason, Hint: hint}
}

// nowhere says that no end was named. A node that is only to enrol is then switched off.
func (h *handover) nowhere() bool { return h.root == "" && h.image == nil && h.exec == "" }

// switchRoot starts the init of the root at newRoot. /run goes along, and with it what was installed.
func (n *node) switchRoot(what string) error {
	if _, err := os.Lstat(newRoot + n.init); err != nil {
		return n.cannot(what, fmt.Errorf("it has no %s", n.init), "name its init by init=")
	}
	for _, dir := range []string{"/dev", "/proc", "/sys", "/run"} {
		if err := os.MkdirAll(newRoot+dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	n.quiet()
	n.console.say("handing over to %s: %s%s", what, n.init, n.took())
	return n.cannot(n.init, mount.SwitchRoot(newRoot, n.init), "see that the root is for this machine")
}
