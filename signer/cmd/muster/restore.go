package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"muster/internal/durable"
	"muster/signer"
	"muster/signer/nodeset"
	"muster/signer/store"
	"muster/signer/store/bolt"
)

const (
	// replaced is the name of the store that a restore took the place of.
	replaced = "store.db.replaced"
	// staged is a restored store's name until it is whole.
	staged = "store.db.restore"
)

type restoreOptions struct {
	dir, identity, passphrase string
	by                        string // who asks
	accept, yes               bool
}

func (e *env) restoreCommand() *cobra.Command {
	o := restoreOptions{}
	c := &cobra.Command{
		Use:   "restore FILE",
		Short: "Put a backup in the place of the record of a head that is stopped",
		Long: `restore checks the whole of FILE, which muster backup wrote, and puts it in the place of
store.db, which becomes store.db.replaced. What has happened since the backup is forgotten by it. Hence:

- every grant that was not used is closed: enable anew what has to enrol;
- what the CRL in public/ says has ended stays so, and CRL numbers go on from the greatest seen;
- nodes that were revoked, disabled or replaced since stay so, and keys that were barred, where store.db can still be
  read; where it cannot, only certificates are known to have ended, and restore says how many of those that were
  revoked are not in FILE: the node that had one would get another when it is enabled;
- the epoch grows and the keys of challenges are new, so that no older store and no older answer is good;
- a certificate that a node got since then is not on record, and refused. It is listed by
  muster certs list --state unknown as soon as the node uses it.

restore --accept does the same to the store as it lies there: for one that serve does not sign from, because it is
not the one that its witness (ca/witness) knows, and of which there is no newer copy.

Stop the daemon and its sockets first. Where no CA is in --dir, it comes from the backup's keys, for which
--identity or --passphrase is needed.`,
		Example: `  systemctl stop muster.service muster.socket muster-public.socket muster-admin.socket
  muster restore /backup/muster-2026-05-17`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.accept == (len(args) > 0) || len(args) > 1 {
				return fail(exitUsage, "muster restore --help", "either name one backup, or give --accept")
			}
			return e.restore(cmd.Context(), o, strings.Join(args, ""))
		},
	}
	f := c.Flags()
	f.StringVar(&o.dir, "dir", defaultDir, "state `directory`")
	f.BoolVar(&o.accept, "accept", false, "take the store as it lies there for a restored one")
	f.BoolVar(&o.yes, "yes", false, "do not ask")
	f.StringVar(&o.identity, "identity", "", "`file` with the age identity that opens the backup's keys")
	f.StringVar(&o.passphrase, "passphrase", "", "`file` with the passphrase that opens the backup's keys")
	return c
}

// restore takes the place of a store.
//
//  1. Open what only root may read; be the owner of the state; take the store's lock.
//  2. Look at all of the backup, and ask. Until here nothing has changed.
//  3. Make the new store beside the old one.
//  4. New epoch keys, then the store's name, then the witness. After a crash in between, restore can be
//     run again, or the store that is there be served.
func (e *env) restore(ctx context.Context, o restoreOptions, path string) error {
	keepSecret()
	o.by = fmt.Sprintf("uid %d pid %d", os.Getuid(), os.Getpid())
	with, err := o.identities()
	if err != nil {
		return err
	}
	var file *os.File
	if !o.accept {
		if file, err = os.Open(path); err != nil {
			return fail(exitUsage, "name a file that muster backup wrote", "%v", err)
		}
		defer file.Close()
	}
	unlock, err := lockDir(o.dir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := asOwner(o.dir); err != nil {
		return err
	}
	current, release, err := lockStore(o.dir)
	if err != nil {
		return err
	}
	defer release()
	if o.accept {
		return e.accept(ctx, o, current)
	}
	return e.restoreFile(ctx, o, file, current, with)
}

// lockStore keeps every daemon away. The store is nil where there is none that can be opened.
func lockStore(dir string) (current *bolt.Store, release func(), err error) {
	path := filepath.Join(dir, storeFile)
	st, err := bolt.Open(path, time.Second)
	switch {
	case err == nil:
		return st, func() { st.Close() }, nil
	case errors.Is(err, store.ErrAbsent):
		return nil, func() {}, nil
	case errors.Is(err, store.ErrLocked):
		return nil, nil, headRuns(dir)
	case errors.Is(err, store.ErrNewer), errors.Is(err, fs.ErrPermission):
		return nil, nil, noStore(dir, err)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, nil, headRuns(dir)
	}
	return nil, func() { f.Close() }, nil
}

func headRuns(dir string) error {
	return fail(exitPolicy, "systemctl stop muster.service muster.socket muster-public.socket muster-admin.socket", "a head is running on %s", dir)
}

// identities open the keys of a backup.
func (o *restoreOptions) identities() ([]age.Identity, error) {
	var with []age.Identity
	if o.identity != "" {
		f, err := os.Open(o.identity)
		if err != nil {
			return nil, fail(exitUsage, "give --identity what age-keygen wrote", "%v", err)
		}
		defer f.Close()
		if with, err = age.ParseIdentities(f); err != nil {
			return nil, fail(exitUsage, "give --identity what age-keygen wrote", "%s: %v", o.identity, err)
		}
	}
	secret, err := readSecret(o.passphrase, "backup", "--passphrase")
	if err != nil || secret == nil {
		return with, err
	}
	id, err := age.NewScryptIdentity(string(secret))
	return append(with, id), err
}

func (e *env) restoreFile(ctx context.Context, o restoreOptions, file *os.File, current *bolt.Store, with []age.Identity) error {
	found, err := signer.ReadBackup(file, nil, nil)
	if err == nil {
		err = signer.CanRestore(ctx, o.dir, found, reader(current))
	}
	if err != nil {
		return fail(exitFailed, "nothing was changed; try an older backup", "%s: %v", file.Name(), err)
	}
	unseal := !signer.HasKeys(ctx, o.dir, found, reader(current))
	if unseal && len(with) == 0 {
		return fail(exitUsage, "--identity FILE or --passphrase FILE", "the CA's keys are to come from the backup, and are encrypted")
	}
	question := fmt.Sprintf("%s is of %s: %s, %s open then, which will be closed. Whatever the head of %s did since is forgotten.",
		file.Name(), at(found.Made), nodes(found.Nodes), grants(found.Open), o.dir)
	if err := e.confirm(o.yes, question); err != nil {
		return err
	}
	if unseal || len(with) > 0 && found.Keys != nil {
		// Keys that are there already stay.
		if err := signer.UnsealKeys(o.dir, found.Keys, with...); err != nil {
			return fail(exitFailed, "give the --identity or --passphrase that it was made for", "%s: %v", file.Name(), err)
		}
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	now := time.Now()
	fields := map[string]string{"by": o.by, "backup": found.Made.UTC().Format(time.RFC3339)}
	done, err := stage(ctx, o.dir, file, found, reader(current), fields, now)
	if err != nil {
		return settleError(err)
	}
	if err := signer.RenewEpochs(o.dir, now); err != nil {
		return err
	}
	if err := replaceStore(o.dir); err != nil {
		return err
	}
	if away := signer.KeysAway(ctx, o.dir, found, reader(current)); len(away) > 0 {
		fmt.Fprintf(e.out, "WARNING: not in %s, and so the CRLs of their CAs stay as they are: %s\n", filepath.Join(o.dir, "ca"), strings.Join(away, ", "))
	}
	return e.restored(o.dir, done)
}

// reader is a store that may be absent.
func reader(st *bolt.Store) store.Reader {
	if st == nil {
		return nil
	}
	return st
}

// stage makes the restored store beside the old one.
func stage(ctx context.Context, dir string, file io.Reader, found *signer.Backup, current store.Reader, fields map[string]string, now time.Time) (*signer.Restored, error) {
	path := filepath.Join(dir, staged)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err := bolt.Create(path, found.Head); err != nil {
		return nil, err
	}
	st, err := bolt.Open(path, time.Second)
	if err != nil {
		return nil, err
	}
	var done *signer.Restored
	_, err = signer.LoadBackup(ctx, st, file)
	if err == nil {
		done, err = signer.Settle(ctx, dir, st, current, fields, now)
	}
	if err = errors.Join(err, st.Close()); err != nil {
		os.Remove(path)
		return nil, err
	}
	return done, nil
}

// replaceStore gives the staged store its name, and the old one another.
func replaceStore(dir string) error {
	old := filepath.Join(dir, replaced)
	if err := os.Remove(old); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Link(filepath.Join(dir, storeFile), old); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Rename(filepath.Join(dir, staged), filepath.Join(dir, storeFile)); err != nil {
		return err
	}
	return durable.SyncDir(dir)
}

// accept settles the store in its place. A crash before the end leaves one that its witness speaks against still.
func (e *env) accept(ctx context.Context, o restoreOptions, current *bolt.Store) error {
	if current == nil {
		return fail(exitFailed, "muster restore FILE, with a backup", "there is no store in %s that can be read", o.dir)
	}
	tail, err := current.Tail(ctx)
	if err != nil {
		return err
	}
	question := fmt.Sprintf("The store in %s, with a journal of %d entries, is to be the newest that there is. Its open grants will be closed.", o.dir, tail.Seq)
	if err := e.confirm(o.yes, question); err != nil {
		return err
	}
	now := time.Now()
	if err := signer.RenewEpochs(o.dir, now); err != nil {
		return err
	}
	done, err := signer.Settle(ctx, o.dir, current, nil, map[string]string{"by": o.by, "accepted": fmt.Sprint(tail.Seq)}, now)
	if err != nil {
		return settleError(err)
	}
	return e.restored(o.dir, done)
}

func settleError(err error) error {
	if errors.Is(err, signer.ErrClockBack) {
		return fail(exitPolicy, "set the clock right first", "%v", err)
	}
	if errors.Is(err, signer.ErrOtherCAs) {
		return fail(exitPolicy, "restore a backup from after that; to go back to the older CAs, and lose the nodes that know the newer ones alone, move that file away", "%v", err)
	}
	return err
}

func (e *env) restored(dir string, done *signer.Restored) error {
	if err := done.Witness(dir); err != nil {
		return err
	}
	fmt.Fprintf(e.out, "restored: epoch %d\n", done.Epoch)
	if len(done.Closed) > 0 {
		closed, err := nodeset.Of(done.Closed...)
		if err != nil {
			return err
		}
		fmt.Fprintf(e.out, "  closed    %s\n", closed)
	}
	if done.Ended > 0 {
		fmt.Fprintf(e.out, "  ended     %s that the backup took for good\n", certificates(done.Ended))
	}
	if done.Lost > 0 {
		fmt.Fprintf(e.out, "WARNING: %s not in this backup; do not enable -a, but by name whom you know\n", revokedCertificates(done.Lost))
	}
	if len(done.Unread) > 0 {
		unread, err := nodeset.Of(done.Unread...)
		if err != nil {
			return err
		}
		fmt.Fprintf(e.out, "WARNING: the records of %s are damaged, and were left as they are\n", unread)
	}
	serve := "muster serve"
	if dir != defaultDir {
		serve += " --dir " + quoted(dir)
	}
	fmt.Fprintf(e.out, "Next: %s; then muster certs enable what has to enrol\n", serve)
	return nil
}

func revokedCertificates(n int) string {
	if n == 1 {
		return "1 revoked certificate is"
	}
	return fmt.Sprintf("%d revoked certificates are", n)
}

func grants(n int) string {
	if n == 1 {
		return "1 grant"
	}
	return fmt.Sprintf("%d grants", n)
}

// confirm asks on a terminal; elsewhere yes must have been given.
func (e *env) confirm(yes bool, question string) error {
	if yes {
		return nil
	}
	if !isTerminal(os.Stdin) || !isTerminal(e.err) {
		return fail(exitUsage, "look at it, then give --yes", "%s", question)
	}
	fmt.Fprintf(e.err, "%s\nGo on? [y/N] ", question)
	answer, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err != nil || !strings.EqualFold(strings.TrimSpace(answer), "y") {
		return fail(exitPolicy, "", "nothing was changed")
	}
	return nil
}
