package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"muster/signer"
)

type serveOptions struct {
	dir, listen, public, publicURL string
	limits                         signer.Limits
	verbose                        bool
}

func (e *env) serveCommand() *cobra.Command {
	var o serveOptions
	c := &cobra.Command{
		Use:   "serve",
		Short: "Be the signer: serve nodes, the public listener and the admin socket",
		Long: `serve is the daemon. It never makes a CA or a store: muster init does, once.
Sockets may come from systemd: FileDescriptorName node, public and admin.`,
		Example: `  muster serve
  muster serve --listen 10.54.0.1:8443 --public 10.54.0.1:8080 --public-url http://head1.example.org:8080`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return e.serve(cmd.Context(), o) },
	}
	f := c.Flags()
	f.StringVar(&o.dir, "dir", defaultDir, "state `directory`")
	f.StringVar(&o.listen, "listen", ":8443", "`address` for nodes (HTTPS)")
	f.StringVar(&o.public, "public", ":8080", "`address` for the CRL and health checks (HTTP); empty for none")
	f.StringVar(&o.publicURL, "public-url", "", "`URL` of the public listener, as certificates name it (default: from init's first --host)")
	f.IntVar(&o.limits.PerAddress, "per-address", 0, "connections from one address at once; 0 is 256")
	f.IntVar(&o.limits.Total, "connections", 0, "connections in all at once; 0 is 8192")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "log refusals of strangers too")
	return c
}

func (e *env) serve(ctx context.Context, o serveOptions) error {
	if o.limits.PerAddress < 0 || o.limits.Total < 0 {
		return fail(exitUsage, "muster serve --help", "--per-address and --connections are numbers of connections, and not negative")
	}
	keepSecret()
	level := slog.LevelInfo
	if o.verbose {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(e.err, &slog.HandlerOptions{Level: level}))
	st, err := openStore(o.dir)
	if err != nil {
		return err
	}
	defer st.Close()
	on, err := e.listen(o)
	if err != nil {
		return err
	}
	head, err := signer.Open(ctx, signer.Config{
		Dir: o.dir, Store: st, PublicURL: o.publicURL, PublicAddr: o.public, Limits: o.limits, Log: log,
	})
	if err != nil {
		if errors.Is(err, signer.ErrNotInitialised) {
			return fail(exitUsage, "muster init --dir "+quoted(o.dir), "%v", err)
		}
		if errors.Is(err, signer.ErrPublicURL) {
			return fail(exitUsage, "muster serve --public-url http://HOST:8080", "--public-url: %v", err)
		}
		return err
	}
	log.Info("serving", "version", version, "nodes", on.Node.Addr().String(), "admin", on.Admin.Addr().String(), "pin", head.Pin())
	daemon.SdNotify(false, daemon.SdNotifyReady)
	err = head.Serve(ctx, on)
	daemon.SdNotify(false, daemon.SdNotifyStopping)
	return err
}

// keepSecret keeps the CA's key out of core dumps and from other processes of the same user.
func keepSecret() {
	unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
}

// listen takes the sockets that systemd passes, and opens the others.
func (e *env) listen(o serveOptions) (on signer.Listeners, err error) {
	passed, err := activation.ListenersWithNames()
	if err != nil {
		return on, err
	}
	take := func(name string, open func() (net.Listener, error)) net.Listener {
		if l := passed[name]; len(l) > 0 && l[0] != nil {
			return l[0]
		}
		l, openErr := open()
		if openErr != nil {
			err = errors.Join(err, openErr)
			return nil
		}
		return l
	}
	on.Node = take("node", func() (net.Listener, error) { return listenTCP("--listen", o.listen) })
	if o.public != "" {
		on.Public = take("public", func() (net.Listener, error) { return listenTCP("--public", o.public) })
	}
	on.Admin = take("admin", func() (net.Listener, error) { return listenAdmin(e.socket) })
	return on, err
}

func listenTCP(flag, addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fail(exitUsage, fmt.Sprintf("muster serve %s ADDRESS", flag), "%s %s: %v", flag, addr, unwrapped(err))
	}
	return l, nil
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
