package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"muster/internal/durable"
	"muster/signer"
	"muster/signer/store"
	"muster/signer/store/bolt"
)

const (
	defaultDir = "/var/lib/muster"
	storeFile  = "store.db"
	// unborn is the store's name until it holds a cluster; a crash before that leaves no store.
	unborn = "store.db.init"
)

func (e *env) initCommand() *cobra.Command {
	var dir, passphrase string
	var plan signer.Plan
	var imported string
	var asJSON bool
	c := &cobra.Command{
		Use:   "init",
		Short: "Make a cluster: its CA, its store and its state directory",
		Long: `init makes, once, what muster serve needs: the cluster's CA, the store and the state
directory. It prints the pin that nodes must know to trust this head. It never replaces a
cluster; a run that was cut short can simply be repeated. What root makes belongs to the owner
of the state directory, where that is there already.

With --import-ca the CA is one that was made elsewhere: a root, or an intermediate with those
above it in the same file. It must be for this cluster alone. Its key is copied.`,
		Example: `  muster init --cluster hpc1 --host head1.example.org,10.54.0.1
  muster init --import-ca /etc/xcat/ca/ca-cert.pem /etc/xcat/ca/private/ca-key.pem`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !cmd.Flags().Changed("host") {
				plan.Hosts = ownHosts()
			}
			var err error
			if plan.Passphrase, err = readPassphrase(passphrase); err != nil {
				return err
			}
			if plan.CA, err = importCA(cmd, imported, args, plan.Passphrase); err != nil {
				return err
			}
			made, err := initialise(cmd.Context(), dir, plan)
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(e.out).Encode(made)
			}
			e.welcome(dir, plan, made)
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&dir, "dir", defaultDir, "state `directory`")
	f.StringVar(&plan.Cluster, "cluster", shortHostname(), "the cluster's `name`, as certificates show it for ever")
	f.StringVar(&plan.TrustDomain, "trust-domain", "", "SPIFFE trust `domain`, fully qualified (default: CLUSTER.internal)")
	f.StringSliceVar(&plan.Hosts, "host", nil, "`names` and addresses under which nodes reach this head (default: its own)")
	f.StringVar(&imported, "import-ca", "", "use the CA of this `file`, PEM; the file with its key comes next")
	f.StringVar(&passphrase, "ca-passphrase", "", "encrypt the CA's key with the passphrase in this `file`, or on standard input (-)")
	f.BoolVar(&asJSON, "json", false, "print the pin and the CA certificate as JSON")
	return c
}

// importCA reads a CA that was made elsewhere; nil where none is named.
func importCA(cmd *cobra.Command, certs string, args []string, passphrase signer.Passphrase) (*signer.Imported, error) {
	if certs == "" {
		return nil, noArgs(cmd, args)
	}
	if len(args) != 1 {
		return nil, fail(exitUsage, "muster init --import-ca CERTIFICATE KEY", "--import-ca takes two files")
	}
	keepSecret()
	chain, err := os.ReadFile(certs)
	if err != nil {
		return nil, fail(exitUsage, "", "--import-ca: %v", err)
	}
	key, err := os.ReadFile(args[0])
	if err != nil {
		return nil, fail(exitUsage, "", "--import-ca: %v", err)
	}
	ca, err := signer.Import(chain, key, passphrase, time.Now())
	switch {
	case errors.Is(err, signer.ErrNoPassphrase), errors.Is(err, signer.ErrPassphrase):
		return nil, fail(exitUsage, "muster init --ca-passphrase FILE --import-ca …", "--import-ca %s: %v", args[0], err)
	case err != nil:
		return nil, fail(exitUsage, "see docs/operations.md, 'A CA that you have'", "--import-ca %s: %v", certs, err)
	}
	return ca, nil
}

func initialise(ctx context.Context, dir string, plan signer.Plan) (*signer.Made, error) {
	keepSecret()
	if err := plan.Check(); err != nil {
		return nil, fail(exitUsage, "muster init --help", "%v", err)
	}
	if err := needUser(dir); err != nil {
		return nil, err
	}
	unlock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := asOwner(dir); err != nil {
		return nil, err
	}
	if _, err := os.Lstat(filepath.Join(dir, storeFile)); err == nil {
		return nil, fail(exitPolicy, "muster serve --dir "+quoted(dir), "%s has a cluster already; init never replaces one", dir)
	}
	path := filepath.Join(dir, unborn)
	if lostStore(dir) {
		return nil, storeLost(dir)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if err := bolt.Create(path, hostname()); err != nil {
		return nil, err
	}
	st, err := bolt.Open(path, time.Second)
	if err != nil {
		return nil, err
	}
	made, err := signer.Init(ctx, dir, st, plan, time.Now())
	if err := errors.Join(err, st.Close()); err != nil {
		return nil, err
	}
	if err := os.Rename(path, filepath.Join(dir, storeFile)); err != nil {
		return nil, err
	}
	return made, durable.SyncDir(dir)
}

// lostStore says that dir has a CA whose store is gone. An init that was cut short has left its unborn
// store behind; without that, the CA's key has been in use, and must not be replaced.
func lostStore(dir string) bool {
	keys, _ := filepath.Glob(filepath.Join(dir, "ca/*.key"))
	_, bornErr := os.Lstat(filepath.Join(dir, storeFile))
	_, unbornErr := os.Lstat(filepath.Join(dir, unborn))
	return len(keys) > 0 && errors.Is(bornErr, os.ErrNotExist) && errors.Is(unbornErr, os.ErrNotExist)
}

func storeLost(dir string) error {
	return fail(exitPolicy, "muster restore FILE, with a backup; to begin anew, and lose every node, move "+quoted(filepath.Join(dir, "ca"))+" away",
		"%s has a CA, and no %s", dir, storeFile)
}

// lockDir makes dir, for its owner alone, and keeps two inits apart.
func lockDir(dir string) (unlock func(), err error) {
	err = os.MkdirAll(dir, 0o700)
	var d *os.File
	if err == nil {
		d, err = os.Open(dir)
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, fail(exitFailed, "run as root, or give --dir", "%v", err)
	}
	if err != nil {
		return nil, fail(exitFailed, "--dir DIRECTORY, which is made where it is not there", "%v", err)
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		d.Close()
		return nil, fail(exitFailed, "wait for it to end", "another muster init is at work in %s", dir)
	}
	return func() { d.Close() }, nil
}

func (e *env) welcome(dir string, plan signer.Plan, made *signer.Made) {
	serve := "muster serve"
	switch {
	case dir != defaultDir:
		serve += " --dir " + quoted(dir)
	case unitInstalled():
		serve = "systemctl enable --now muster.service"
	}
	fmt.Fprintf(e.out, `cluster %s made in %s
pin     %s

Next:
  1. %s
  2. put on your nodes' kernel command line:  muster.head=https://%s muster.ca=%s
  3. muster certs enable -i 'n[0-99]'
`, made.Cluster, dir, made.Pin, serve, net.JoinHostPort(forBoot(plan.Hosts), "8443"), made.Pin)
}

// forBoot is the host that a node can reach most likely: it boots with no search domain.
func forBoot(hosts []string) string {
	for _, host := range hosts {
		if net.ParseIP(host) != nil || strings.Contains(host, ".") {
			return host
		}
	}
	return hosts[0]
}

// ownHosts are the names and global addresses of this machine.
func ownHosts() []string {
	hosts := []string{hostname()}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return hosts
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			hosts = append(hosts, n.IP.String())
		}
	}
	return hosts
}

// openStore explains what may be wrong with a store.
func openStore(dir string) (*bolt.Store, error) {
	st, err := bolt.Open(filepath.Join(dir, storeFile), time.Second)
	if err != nil {
		return nil, noStore(dir, err)
	}
	return st, nil
}

func noStore(dir string, err error) error {
	switch {
	case errors.Is(err, store.ErrAbsent) && lostStore(dir):
		return storeLost(dir)
	case errors.Is(err, store.ErrAbsent):
		return fail(exitUsage, "muster init --dir "+quoted(dir), "no cluster in %s", dir)
	case errors.Is(err, store.ErrLocked):
		return fail(exitFailed, "there may be one muster serve for each --dir", "%s is in use by another process", dir)
	case errors.Is(err, store.ErrNewer):
		return fail(exitFailed, "install that version again", "%v", err)
	case errors.Is(err, fs.ErrPermission):
		return fail(exitFailed, permissionHint(dir), "%v", err)
	}
	return fail(exitUnreachable, "look at the disk; then muster restore FILE, with a backup", "%v", err)
}
