package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"

	"muster/internal/journal"
	"muster/signer"
)

// socketUnits are the units of the package, by FileDescriptorName.
var socketUnits = map[string]string{"node": "muster.socket", "public": "muster-public.socket", "admin": "muster-admin.socket", "est": "muster-est.socket"}

// listen takes the sockets that systemd passes, and opens the others. What systemd passes outlives the
// daemon: connections wait in it while the daemon is restarted.
func (e *env) listen(o *serveOptions, log *slog.Logger) (on signer.Listeners, err error) {
	passed, err := activation.ListenersWithNames()
	if err != nil {
		return on, err
	}
	for name := range passed {
		if socketUnits[name] == "" {
			return on, fail(exitUsage, "FileDescriptorName= of a socket unit for muster.service is node, public, admin or est", "systemd passes a socket named %q", name)
		}
	}
	take := func(name, flag string, open func() (net.Listener, error)) []net.Listener {
		listeners := slices.DeleteFunc(passed[name], func(l net.Listener) bool { return l == nil })
		if len(listeners) > 0 {
			if o.explicit(flag) {
				log.Warn("the address is the socket unit's", "event", journal.SettingIgnored, "setting", flag, "unit", socketUnits[name], "address", addresses(listeners))
			}
			return listeners
		}
		l, openErr := open()
		if openErr != nil {
			err = errors.Join(err, openErr)
			return nil
		}
		return []net.Listener{l}
	}
	on.Node = take("node", "listen", func() (net.Listener, error) { return listenTCP("--listen", o.listen, socketUnits["node"]) })
	if o.public != "" || len(passed["public"]) > 0 {
		on.Public = take("public", "public", func() (net.Listener, error) { return listenTCP("--public", o.public, socketUnits["public"]) })
	}
	if o.est != "" || len(passed["est"]) > 0 {
		on.EST = take("est", "est", func() (net.Listener, error) { return listenTCP("--est", o.est, socketUnits["est"]) })
	}
	on.Admin = take("admin", "socket", func() (net.Listener, error) { return listenAdmin(e.socket) })
	return on, err
}

// addresses are where listeners listen, for people.
func addresses(listeners []net.Listener) string {
	var all []string
	for _, l := range listeners {
		all = append(all, l.Addr().String())
	}
	return strings.Join(all, ",")
}

func listenTCP(flag, addr, unit string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err == nil {
		return l, nil
	}
	hint := fmt.Sprintf("muster serve %s ADDRESS", flag)
	if os.Getenv("NOTIFY_SOCKET") != "" { // it is the socket unit that could not have it
		hint = "another address: systemctl edit " + unit + ", as systemd.md has it under Addresses"
	}
	if errors.Is(err, syscall.EADDRINUSE) {
		hint = "ss -ltnp shows who has it; " + hint
	}
	return nil, fail(exitUsage, hint, "%s %s: %v", flag, addr, unwrapped(err))
}

func unwrapped(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// listenAdmin opens the admin socket for root and the group muster. A socket that nobody answers on is
// left over from a crash, and replaced.
func listenAdmin(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fail(exitUsage, "muster serve --socket PATH", "admin socket: %v", err)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, fail(exitUsage, "muster serve --socket PATH", "admin socket %s is in use", path)
	} else if errors.Is(err, syscall.ECONNREFUSED) && isSocket(path) {
		os.Remove(path)
	}
	// The socket must not be open to all for an instant: the mask, not a later chmod, closes it.
	old := unix.Umask(0o117)
	l, err := net.Listen("unix", path)
	unix.Umask(old)
	if err != nil {
		return nil, fail(exitUsage, "muster serve --socket PATH", "admin socket %s: %v", path, unwrapped(err))
	}
	if g, err := user.LookupGroup("muster"); err == nil {
		if gid, err := strconv.Atoi(g.Gid); err == nil {
			os.Chown(path, -1, gid)
		}
	}
	return l, nil
}

// isSocket keeps a --socket that names somebody's file from deleting it.
func isSocket(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode().Type() == os.ModeSocket
}
