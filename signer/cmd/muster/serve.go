package main

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"muster/internal/journal"
	"muster/signer"
)

type serveOptions struct {
	dir, listen, public, est, publicURL, passphrase string
	limits                                          signer.Limits
	verbose                                         bool
	explicit                                        func(flag string) bool // whether somebody set it
}

func (e *env) serveCommand() *cobra.Command {
	o := &serveOptions{}
	c := &cobra.Command{
		Use:   "serve",
		Short: "Be the signer: serve nodes, the public listener and the admin socket",
		Long: `serve is the daemon. It never makes a CA or a store: muster init does, once.
Sockets may come from systemd: FileDescriptorName node, public, admin and est. An encrypted CA
key's passphrase is systemd's credential ca-passphrase, else in the file of --ca-passphrase.
SIGHUP makes it read the configuration again; verbose, per-address and connections take
effect, and a CRL is signed.`,
		Example: `  muster serve
  muster serve --listen 10.54.0.1:8443 --public 10.54.0.1:8080 --public-url http://head1.example.org:8080`,
		Args: noArgs,
	}
	o.flags(c.Flags())
	c.PersistentPreRunE = func(cmd *cobra.Command, args []string) error {
		return asEvent(journal.ServeFailed, configured(cmd, args))
	}
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		o.explicit = func(flag string) bool { return cmd.Flags().Changed(flag) }
		return asEvent(journal.ServeFailed, e.serve(cmd.Context(), o, func() (*serveOptions, error) { return e.again(cmd) }))
	}
	return c
}

func (o *serveOptions) flags(f *pflag.FlagSet) {
	f.StringVar(&o.dir, "dir", defaultDir, "state `directory`")
	f.StringVar(&o.listen, "listen", ":8443", "`address` for nodes (HTTPS)")
	f.StringVar(&o.public, "public", ":8080", "`address` for CRL, OCSP and health checks (HTTP); empty for none")
	f.StringVar(&o.est, "est", "", "`address` for EST clients (HTTPS), as :8444; empty for none")
	f.StringVar(&o.publicURL, "public-url", "", "`URL` of the public listener, as certificates name it (default: from init's first --host)")
	f.StringVar(&o.passphrase, "ca-passphrase", "", "`file` with the passphrase of the CA's key (default: systemd's credential ca-passphrase)")
	f.IntVar(&o.limits.PerAddress, "per-address", 0, "connections from one address at once; 0 is 256")
	f.IntVar(&o.limits.Total, "connections", 0, "connections in all at once; 0 is 8192")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "log refusals of strangers too")
}

func (o *serveOptions) check() error {
	if o.limits.PerAddress < 0 || o.limits.Total < 0 {
		return fail(exitUsage, "muster serve --help", "--per-address and --connections are numbers of connections, and not negative")
	}
	return nil
}

// again reads the configuration once more, as cmd was given it: what stood on the command line still wins.
func (e *env) again(cmd *cobra.Command) (*serveOptions, error) {
	next := &serveOptions{}
	flags := pflag.NewFlagSet(cmd.Name(), pflag.ContinueOnError)
	next.flags(flags)
	cmd.InheritedFlags().VisitAll(flags.AddFlag)
	_, args, err := cmd.Root().Find(e.args)
	if err != nil {
		return nil, err
	}
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if err := configure(cmd, flags); err != nil {
		return nil, err
	}
	return next, next.check()
}

// serve is the daemon's life.
//
//  1. Take what only root may have: passphrase, store, sockets. Then be the owner of the state.
//  2. Open the head. Until here nothing has changed.
//  3. Serve, tell systemd, obey SIGHUP, until ctx ends.
func (e *env) serve(ctx context.Context, o *serveOptions, again func() (*serveOptions, error)) error {
	if err := o.check(); err != nil {
		return err
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	keepSecret()
	level := &slog.LevelVar{}
	level.Set(o.level())
	log := slog.New(journal.Handler(e.err, slog.HandlerOptions{Level: level}))
	passphrase, err := servePassphrase(o.passphrase)
	if err != nil {
		return err
	}
	st, err := openStore(o.dir)
	if err != nil {
		return err
	}
	defer st.Close()
	on, err := e.listen(o, log)
	if err != nil {
		return err
	}
	if err := asOwner(o.dir); err != nil {
		return err
	}
	public := o.public
	if len(on.Public) > 0 {
		public = on.Public[0].Addr().String()
	}
	head, err := signer.Open(ctx, signer.Config{
		Dir: o.dir, Store: st, PublicURL: o.publicURL, PublicAddr: public, Passphrase: passphrase, Limits: o.limits, Log: log,
	})
	if err != nil {
		return openError(o.dir, err)
	}
	log.Info("serving", "version", version, "nodes", addresses(on.Node), "admin", addresses(on.Admin), "pin", head.Pin())
	if len(on.EST) > 0 {
		log.Info("serving EST", "clients", addresses(on.EST))
	}
	u := &unit{head: head, on: on, log: log, level: level, again: again}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return head.Serve(ctx, on) })
	group.Go(func() error { return u.watch(ctx) })
	group.Go(func() error { return u.observe(ctx) })
	group.Go(func() error { return u.obey(ctx, hup) })
	return group.Wait()
}

func (o *serveOptions) level() slog.Level {
	if o.verbose {
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

// openError explains why there is no head.
func openError(dir string, err error) error {
	switch {
	case errors.Is(err, signer.ErrNotInitialised):
		return fail(exitUsage, "muster init --dir "+quoted(dir), "%v", err)
	case errors.Is(err, signer.ErrPublicURL):
		return fail(exitUsage, "muster serve --public-url http://HOST:8080", "--public-url: %v", err)
	case errors.Is(err, signer.ErrNoPassphrase):
		return asEvent(journal.CALocked, fail(exitUsage, passphraseHint, "%v", err))
	case errors.Is(err, signer.ErrPassphrase):
		return asEvent(journal.CALocked, fail(exitUsage, "openssl pkey -noout -passin file:FILE -in "+quoted(dir+"/ca/ca.key")+" says whether it does", "%v", err))
	}
	if errors.Is(err, fs.ErrPermission) {
		return fail(exitFailed, permissionHint(dir), "%v", err)
	}
	return err
}

// keepSecret keeps the CA's key out of core dumps and from other processes of the same user.
func keepSecret() {
	unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
}
