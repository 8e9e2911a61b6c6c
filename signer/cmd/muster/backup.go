package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"muster/internal/durable"
	"muster/signer"
)

func (e *env) backupCommand() *cobra.Command {
	var passphrase string
	req := signer.BackupRequest{}
	c := &cobra.Command{
		Use:   "backup FILE",
		Short: "Copy the record of the running head to a file",
		Long: `backup writes one state of the record and the whole journal to FILE, while the head serves. FILE
is written whole or not at all, with mode 0600; one that exists is not replaced. It ends with a
checksum, and was read back before it got its name.

There are no keys in it, and so it is no secret, unless --with-keys asks for the files of ca/: these are
encrypted, with age, to --recipient or with the passphrase in the file --passphrase. Only root and the
daemon's own user get them. Keep whatever opens them elsewhere.

What a restore needs besides: ca/, from --with-keys or a copy of your own, and signer.toml.`,
		Example: `  muster backup /backup/muster-$(date +%F)
  muster backup --with-keys --recipient age1… muster.backup`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fail(exitUsage, "muster backup /backup/muster-$(date +%F)", "name one file for the backup, not %d", len(args))
			}
			if !req.WithKeys && (len(req.Recipients) > 0 || passphrase != "") {
				return fail(exitUsage, "muster backup --with-keys …", "--recipient and --passphrase are for --with-keys")
			}
			secret, err := readSecret(passphrase, "backup", "--passphrase")
			if err != nil {
				return err
			}
			req.Passphrase = string(secret)
			return e.backup(cmd, args[0], req)
		},
	}
	f := c.Flags()
	f.BoolVar(&req.WithKeys, "with-keys", false, "put the CA's keys in, encrypted")
	f.StringSliceVar(&req.Recipients, "recipient", nil, "age `recipient` that can read the keys: age1…; may be given again")
	f.StringVar(&passphrase, "passphrase", "", "encrypt the keys with the passphrase in this `file`, or on standard input (-)")
	return c
}

// backup lets the daemon fill a file that has its name only once it was read back.
func (e *env) backup(cmd *cobra.Command, path string, req signer.BackupRequest) error {
	if _, err := os.Lstat(path); err == nil {
		return fail(exitPolicy, "choose another name, or move it away", "%s exists already", path)
	}
	var done *signer.BackupDone
	err := durable.WriteStream(path, 0o600, func(w io.Writer) error {
		var err error
		done, err = call[signer.BackupDone](cmd.Context(), e, signer.AdminBackup, req, func(f signer.Frame) error {
			_, err := fmt.Fprintf(w, "%s\n", f.Item)
			return err
		})
		if err != nil {
			return err
		}
		written := w.(io.ReadSeeker) // the file itself
		if _, err := written.Seek(0, io.SeekStart); err != nil {
			return err
		}
		_, err = signer.ReadBackup(written, nil, nil)
		return err
	})
	if err != nil {
		return err
	}
	keys := "no keys are in it"
	if done.Keys {
		keys = "with the CA's keys, encrypted"
	}
	fmt.Fprintf(e.out, "%s and a journal of %d entries in %s; %s\n", records(done.Records), done.Entries, path, keys)
	if len(done.Damaged) > 0 {
		fmt.Fprintf(e.out, "WARNING: damaged, and so not in it: %s\n", strings.Join(done.Damaged, ", "))
	}
	return nil
}
