package signer

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"hash"
	"os"
	"path/filepath"
	"strings"
	"time"

	"filippo.io/age"

	"muster/signer/store"
)

// A backup is lines of JSON, one value each: a header; the records of the store, by key; the entries of the
// journal, in order; perhaps the CA's keys, encrypted with age; and an end with the SHA-256 of all lines before
// it. It holds records and entries and nothing of how a store keeps them, so that any store can be made
// from it. Epoch keys are in no backup: a restore draws new ones.
type backupLine struct {
	Header *BackupHeader `json:"header,omitempty"`
	Key    string        `json:"key,omitempty"`
	Value  []byte        `json:"value,omitempty"`
	Bad    bool          `json:"damaged,omitempty"` // the record under Key could not be read
	Entry  []byte        `json:"entry,omitempty"`   // store.Entry.Marshal
	Keys   []byte        `json:"keys,omitempty"`    // age: a tar of ca/
	End    *backupEnd    `json:"end,omitempty"`
}

// BackupHeader is what a backup says of itself.
type BackupHeader struct {
	Schema    string    `json:"schema"`
	Made      time.Time `json:"made"`
	Head      string    `json:"head"` // whose journal it is
	Cluster   string    `json:"cluster"`
	ClusterID string    `json:"cluster_id"`
	Pin       string    `json:"pin"`
}

type backupEnd struct {
	Records int    `json:"records"`
	Entries int    `json:"entries"`
	SHA256  string `json:"sha256"`
}

const backupSchema = "muster.backup/v1"

// BackupRequest is `muster backup`.
type BackupRequest struct {
	WithKeys   bool     `json:"with_keys,omitempty"`
	Recipients []string `json:"recipients,omitempty"` // age1…
	Passphrase string   `json:"passphrase,omitempty"` // instead of recipients
}

// BackupDone ends a backup.
type BackupDone struct {
	Records int      `json:"records"`
	Entries int      `json:"entries"`
	Keys    bool     `json:"keys"`
	Damaged []string `json:"damaged,omitempty"` // keys of records that could not be read
}

// adminBackup streams the lines of a backup as items.
func (h *Head) adminBackup(ctx context.Context, req BackupRequest, out *stream) (any, error) {
	to, err := req.recipients(ctx)
	if err != nil {
		return nil, err
	}
	with := "none"
	if req.WithKeys {
		with = "encrypted"
	}
	now := h.now()
	// Before the snapshot, so that a backup tells of itself. A store that cannot write is backed up all the same,
	// but no key goes out that is not on record.
	err = h.store.Commit(ctx, store.Tx{Events: []store.Event{event(now, "backup", "", map[string]string{"by": byWhom(ctx), "keys": with})}})
	if err != nil && (req.WithKeys || !cannotWrite(err)) {
		return nil, err
	}
	view, err := h.store.View(ctx)
	if err != nil {
		return nil, err
	}
	defer view.Close()
	tail, err := view.Tail(ctx)
	if err != nil {
		return nil, err
	}
	w := &backupWriter{out: out, sum: sha256.New()}
	w.line(backupLine{Header: &BackupHeader{
		Schema: backupSchema, Made: now.UTC().Truncate(time.Second), Head: tail.Head,
		Cluster: h.cluster.Name, ClusterID: h.cluster.ID, Pin: h.ca().pin(),
	}})
	if err := w.copy(ctx, view); err != nil {
		return nil, err
	}
	if req.WithKeys {
		sealed, err := h.sealKeys(to)
		if err != nil {
			return nil, err
		}
		w.line(backupLine{Keys: sealed})
	}
	w.end.SHA256 = hex.EncodeToString(w.sum.Sum(nil))
	w.line(backupLine{End: &w.end})
	return BackupDone{w.end.Records, w.end.Entries, req.WithKeys, w.damaged}, w.err
}

func cannotWrite(err error) bool {
	return errors.Is(err, store.ErrFull) || errors.Is(err, store.ErrFailed)
}

// recipients are who can read the keys.
func (r *BackupRequest) recipients(ctx context.Context) (to []age.Recipient, err error) {
	if !r.WithKeys {
		return nil, nil
	}
	if !ownsState(ctx) {
		return nil, adminError(KindPolicy, "as root: muster backup --with-keys; or leave the keys out", "the CA's keys are for root and the head's own user")
	}
	if (len(r.Recipients) > 0) == (r.Passphrase != "") {
		return nil, adminError(KindUsage, "--recipient age1…, as age-keygen prints it, or --passphrase FILE", "keys are encrypted either to recipients or with a passphrase")
	}
	if r.Passphrase != "" {
		with, err := age.NewScryptRecipient(r.Passphrase)
		return []age.Recipient{with}, err
	}
	for _, text := range r.Recipients {
		one, err := age.ParseRecipients(strings.NewReader(text))
		if err != nil {
			return nil, adminError(KindUsage, "--recipient age1…, as age-keygen prints it", "recipient %q: %v", text, err)
		}
		to = append(to, one...)
	}
	return to, nil
}

// sealKeys packs the files of ca/, all but the witness, which speaks for this machine's disk alone.
func (h *Head) sealKeys(to []age.Recipient) ([]byte, error) {
	var sealed bytes.Buffer
	lock, err := age.Encrypt(&sealed, to...)
	if err != nil {
		return nil, err
	}
	pack := tar.NewWriter(lock)
	dir := filepath.Join(h.dir, "ca")
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		if !f.Type().IsRegular() || strings.HasPrefix(f.Name(), ".") || strings.HasPrefix("ca/"+f.Name(), witnessFile) {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			return nil, err
		}
		err = pack.WriteHeader(&tar.Header{Name: f.Name(), Mode: 0o600, Size: int64(len(data))})
		if err == nil {
			_, err = pack.Write(data)
		}
		if err != nil {
			return nil, err
		}
	}
	err = errors.Join(pack.Close(), lock.Close())
	return sealed.Bytes(), err
}

// backupWriter sends lines; after the first failure it sends no more.
type backupWriter struct {
	out *stream
	sum hash.Hash
	end backupEnd
	err error

	damaged []string
}

func (w *backupWriter) line(l backupLine) {
	if w.err != nil {
		return
	}
	b, err := json.Marshal(l)
	if err != nil {
		panic("signer: " + err.Error())
	}
	w.sum.Write(append(b, '\n'))
	w.err = w.out.item(json.RawMessage(b))
}

// copy sends records and entries. Of a record that is damaged the backup has the key, and is good for the others; but
// without the cluster, its CAs or the whole journal there is none.
func (w *backupWriter) copy(ctx context.Context, view store.View) error {
	for item, err := range view.List(ctx, "") {
		bad := errors.Is(err, store.ErrDamaged) && item.Key != "" && item.Key != keyCluster && item.Key != keyCAs
		if err != nil && !bad {
			return err
		}
		if bad {
			w.damaged = append(w.damaged, item.Key)
		}
		w.end.Records++
		w.line(backupLine{Key: item.Key, Value: item.Value, Bad: bad})
		if w.err != nil {
			return w.err
		}
	}
	for e, err := range view.Journal(ctx, 1) {
		if err != nil {
			return damagedJournal(e, err)
		}
		w.end.Entries++
		w.line(backupLine{Entry: e.Marshal()})
		if w.err != nil {
			return w.err
		}
	}
	return w.err
}
