package signer

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"filippo.io/age"

	"muster/internal/durable"
	"muster/signer/attest"
	"muster/signer/store"
)

var (
	// ErrNoBackup: what was given is no backup, or not a whole one.
	ErrNoBackup = errors.New("not a whole backup")
	// ErrKeysLocked: the backup's keys are not for this passphrase or identity.
	ErrKeysLocked = errors.New("the keys in the backup cannot be decrypted")
	// ErrOtherCAs: the restored store does not know the CAs that the head has told nodes to trust.
	ErrOtherCAs = errors.New("the CAs were changed since: those of the store are not those in")
	// ErrClockBack: the clock is before what is to be restored.
	ErrClockBack = errors.New("the clock is before the last record")
)

// maxBackupLine is more than a record of store.MaxTx takes in base64.
const maxBackupLine = 4 << 20

// Backup is what a backup was found to hold.
type Backup struct {
	BackupHeader
	Last  time.Time // of the last entry
	Nodes int
	Open  int // grants that were not used
	Keys  []byte
	// Damaged are the keys of records that could not be read, in the store or in the backup.
	Damaged []string
	cas     caRecord
	at      moment
}

// unreadable is the value of a record that was damaged when it was backed up. It is no JSON and no name, so that the
// restored head finds it damaged: what could not be read goes on to close a name or bar a key.
const unreadable = "\x00"

// ReadBackup reads a backup to its end and returns ErrNoBackup unless its checksum and its journal's chain are
// right. It gives each part as it comes, so what was made of them counts only once it returns nil.
// Both functions may be nil.
func ReadBackup(from io.Reader, record func(store.Put) error, entry func(store.Entry) error) (*Backup, error) {
	r := &backupReader{lines: bufio.NewReaderSize(from, 1<<16), record: record, sum: sha256.New()}
	first, err := r.next()
	if err != nil {
		return nil, err
	}
	if first.Header == nil || first.Header.Schema != backupSchema {
		return nil, fmt.Errorf("%w: it does not begin as one of schema %s", ErrNoBackup, backupSchema)
	}
	r.found.BackupHeader = *first.Header
	// Verify reads the whole of it: records and the end are dealt with on the way.
	err = store.Verify(func(yield func(store.Entry, error) bool) {
		for r.err == nil && !r.ended {
			e, ok := r.step()
			if !ok {
				continue
			}
			if !yield(e, nil) {
				return
			}
			if entry != nil {
				r.err = entry(e)
			}
		}
	})
	switch {
	case r.err != nil:
		return nil, r.err
	case err != nil:
		return nil, fmt.Errorf("%w: %v", ErrNoBackup, err)
	}
	return &r.found, nil
}

type backupReader struct {
	lines  *bufio.Reader
	record func(store.Put) error
	sum    interface {
		io.Writer
		Sum([]byte) []byte
	}
	got   backupEnd
	found Backup
	ended bool
	err   error
}

// next reads a line; its sum does not count for the last one.
func (r *backupReader) next() (backupLine, error) {
	var l backupLine
	text, err := r.lines.ReadSlice('\n')
	for whole := bytes.Clone(text); errors.Is(err, bufio.ErrBufferFull); text = whole {
		if len(whole) > maxBackupLine {
			return l, fmt.Errorf("%w: a line is too long", ErrNoBackup)
		}
		text, err = r.lines.ReadSlice('\n')
		whole = append(whole, text...)
	}
	if errors.Is(err, io.EOF) {
		return l, fmt.Errorf("%w: it breaks off", ErrNoBackup)
	}
	if err != nil {
		return l, err
	}
	if err := json.Unmarshal(text, &l); err != nil {
		return backupLine{}, fmt.Errorf("%w: after %d records and %d entries: %v", ErrNoBackup, r.got.Records, r.got.Entries, err)
	}
	if l.End == nil {
		r.sum.Write(text)
	}
	return l, nil
}

// step reads one line; ok if it is an entry.
func (r *backupReader) step() (e store.Entry, ok bool) {
	l, err := r.next()
	switch {
	case err != nil:
		r.err = err
	case l.End != nil:
		r.err = r.finish(*l.End)
	case l.Keys != nil:
		r.found.Keys = l.Keys
	case l.Entry != nil:
		r.got.Entries++
		if e, r.err = store.ParseEntry(l.Entry); r.err != nil {
			r.err = fmt.Errorf("%w: %v", ErrNoBackup, r.err)
			return e, false
		}
		r.found.Last, r.found.at.seq = e.Time, e.Seq
		return e, true
	case l.Key != "":
		r.got.Records++
		if l.Bad {
			l.Value = []byte(unreadable)
		}
		r.err = r.count(store.Item{Key: l.Key, Value: l.Value, Revision: 1}) // 0 would be an absent one
		if r.err == nil && r.record != nil {
			r.err = r.record(store.Put{Key: l.Key, Value: l.Value})
		}
	default:
		r.err = fmt.Errorf("%w: a line of no known kind", ErrNoBackup)
	}
	return store.Entry{}, false
}

func (r *backupReader) count(item store.Item) error {
	if item.Key == keyCAs {
		cas, err := parse[caRecord](item)
		if err != nil {
			return fmt.Errorf("%w: %v", ErrNoBackup, err)
		}
		r.found.cas = *cas
	}
	if item.Key == keyEpoch {
		if g, err := parse[generation](item); err == nil {
			r.found.at.epoch = g.Epoch
		}
	}
	if string(item.Value) == unreadable {
		r.found.Damaged = append(r.found.Damaged, item.Key)
		return nil
	}
	if !strings.HasPrefix(item.Key, prefixSlot) {
		return nil
	}
	s, err := parse[slot](item)
	if err != nil {
		r.found.Damaged = append(r.found.Damaged, item.Key)
		return nil
	}
	r.found.Nodes++
	if s.Grant != nil && !s.Grant.Used {
		r.found.Open++
	}
	return nil
}

func (r *backupReader) finish(end backupEnd) error {
	r.got.SHA256 = hex.EncodeToString(r.sum.Sum(nil))
	if end != r.got {
		return fmt.Errorf("%w: its checksum is %s, that of its contents %s", ErrNoBackup, end.SHA256, r.got.SHA256)
	}
	if _, err := r.lines.ReadByte(); err != io.EOF {
		return fmt.Errorf("%w: something stands behind its end", ErrNoBackup)
	}
	r.ended = true
	return nil
}

// LoadBackup puts a backup into an empty store whose head has the backup's name. The journal comes out as it
// was, hashes included.
func LoadBackup(ctx context.Context, st store.Store, from io.Reader) (*Backup, error) {
	b := &batch{ctx: ctx, st: st}
	found, err := ReadBackup(from,
		func(p store.Put) error { return b.put(p) },
		func(e store.Entry) error { return b.event(e.Event) })
	if err != nil {
		return nil, err
	}
	return found, b.flush()
}

// batch commits many writes, some at a time.
type batch struct {
	ctx context.Context
	st  store.Store
	tx  store.Tx
}

func (b *batch) put(p store.Put) error {
	if err := b.room(store.Tx{Puts: []store.Put{p}}); err != nil {
		return err
	}
	b.tx.Puts = append(b.tx.Puts, p)
	return nil
}

func (b *batch) event(ev store.Event) error {
	if err := b.room(store.Tx{Events: []store.Event{ev}}); err != nil {
		return err
	}
	b.tx.Events = append(b.tx.Events, ev)
	return nil
}

func (b *batch) drop(key string) error {
	if err := b.room(store.Tx{Deletes: []string{key}}); err != nil {
		return err
	}
	b.tx.Deletes = append(b.tx.Deletes, key)
	return nil
}

func (b *batch) room(next store.Tx) error {
	if len(b.tx.Puts)+len(b.tx.Deletes)+len(b.tx.Events) < store.MaxOps && b.tx.Size()+next.Size() <= store.MaxTx {
		return nil
	}
	return b.flush()
}

func (b *batch) flush() error {
	tx := b.tx
	b.tx = store.Tx{}
	return b.st.Commit(b.ctx, tx)
}

// CanRestore says whether a backup, from nil the store as it lies there, fits the state directory: its CA must
// be there, or in the backup.
func CanRestore(ctx context.Context, dir string, from *Backup, current store.Reader) error {
	if current != nil {
		item, err := current.Get(ctx, keyCluster)
		if err == nil && item.Revision != 0 {
			c, err := parse[cluster](item)
			if err == nil && c.ID != from.ClusterID {
				return fmt.Errorf("%w: it is of the cluster %s, and %s has another one, %s", ErrNoBackup, from.Cluster, dir, c.Name)
			}
		}
	}
	if from.Keys == nil && !HasKeys(ctx, dir, from, current) {
		return fmt.Errorf("a key of its CA is not in %s, and the backup has no keys", filepath.Join(dir, "ca"))
	}
	return nil
}

// HasKeys says whether the state directory has the key of each CA that signs, or will.
func HasKeys(ctx context.Context, dir string, from *Backup, current store.Reader) bool {
	return len(missingKeys(ctx, dir, from, current, func(r role) bool { return r == roleActive || r == roleNext })) == 0
}

// KeysAway names the files with keys of CAs that sign CRLs alone, where they are not in the state directory. The head
// goes on without them.
func KeysAway(ctx context.Context, dir string, from *Backup, current store.Reader) []string {
	return missingKeys(ctx, dir, from, current, func(r role) bool { return r != roleActive && r != roleNext })
}

func missingKeys(ctx context.Context, dir string, from *Backup, current store.Reader, of func(role) bool) (names []string) {
	for _, m := range newestCAs(ctx, from.cas, from.at, current).Members {
		if m.Gone || !of(m.Role) {
			continue
		}
		path := filepath.Join(dir, "ca", m.Key)
		_, err := os.Lstat(path)
		_, early := os.Lstat(path + unborn) // a rotation was cut short; the head gives it its name
		if err != nil && early != nil {
			names = append(names, m.Key)
		}
	}
	return names
}

// moment is how far a store had come: of two of one cluster the later one has the greater.
type moment struct{ epoch, seq uint64 }

func (m moment) before(o moment) bool {
	return m.epoch < o.epoch || m.epoch == o.epoch && m.seq < o.seq
}

// momentOf is zero as far as a store cannot be read.
func momentOf(ctx context.Context, st store.Reader) (m moment) {
	if g, err := readGeneration(ctx, st); err == nil {
		m.epoch = g.Epoch
	}
	if tail, err := st.Tail(ctx); err == nil {
		m.seq = tail.Seq
	}
	return m
}

// newestCAs are those of the store that is replaced, if it can be read and knows all of the restored one's: what a
// rotation did is not undone by a restore, since nodes trust the newest CA, and no dead one may come back. Where both
// know the same CAs, the later store tells their roles: it may be the backup.
func newestCAs(ctx context.Context, restored caRecord, at moment, current store.Reader) caRecord {
	if current == nil {
		return restored
	}
	item, err := current.Get(ctx, keyCAs)
	if err != nil || item.Revision == 0 {
		return restored
	}
	rec, err := parse[caRecord](item)
	if err != nil || !rec.knows(restored) {
		return restored
	}
	if restored.knows(*rec) && momentOf(ctx, current).before(at) {
		return restored
	}
	return *rec
}

// knows says whether each CA of o is in rec.
func (rec caRecord) knows(o caRecord) bool {
	for _, m := range o.Members {
		if !slices.ContainsFunc(rec.Members, func(have caMember) bool { return bytes.Equal(have.Cert, m.Cert) }) {
			return false
		}
	}
	return true
}

// bundle is ring.bundle, from the record alone.
func (rec caRecord) bundle() []byte {
	var text []byte
	for _, m := range rec.Members {
		if m.Gone || m.Role == roleDead || m.Role == roleBurnt {
			continue
		}
		root := m.Cert
		if len(m.Chain) > 0 {
			root = m.Chain[len(m.Chain)-1]
		}
		text = append(text, certificatePEM(root)...)
	}
	return text
}

// settleCAs returns the CAs that the restored store is to have. Where nothing tells of newer ones but the bundle in
// public/, and that is another, only a person can say.
func settleCAs(ctx context.Context, b *batch, dir string, current store.Reader) (caRecord, error) {
	item, err := b.st.Get(ctx, keyCAs)
	if err != nil {
		return caRecord{}, err
	}
	restored, err := parse[caRecord](item)
	if err != nil {
		return caRecord{}, err
	}
	newest := newestCAs(ctx, *restored, momentOf(ctx, b.st), current)
	path := filepath.Join(dir, "public/ca.pem")
	published, err := os.ReadFile(path)
	switch {
	case err == nil && !bytes.Equal(published, newest.bundle()):
		return caRecord{}, fmt.Errorf("%w %s", ErrOtherCAs, path)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return caRecord{}, err
	}
	return newest, b.put(put(keyCAs, newest))
}

// UnsealKeys puts the files of ca/ from a backup into a state directory, but for those that it has. Nothing is
// written unless all of it was decrypted: ErrKeysLocked.
func UnsealKeys(dir string, sealed []byte, with ...age.Identity) error {
	open, err := age.Decrypt(bytes.NewReader(sealed), with...)
	if err != nil {
		return fmt.Errorf("%w: %v", ErrKeysLocked, err)
	}
	files := map[string][]byte{}
	for pack := tar.NewReader(open); ; {
		h, err := pack.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("%w: %v", ErrKeysLocked, err)
		}
		if h.Name != filepath.Base(h.Name) || strings.HasPrefix(h.Name, ".") {
			return fmt.Errorf("%w: a file named %q", ErrNoBackup, h.Name)
		}
		if files[h.Name], err = io.ReadAll(pack); err != nil {
			return fmt.Errorf("%w: %v", ErrKeysLocked, err)
		}
	}
	for _, d := range stateDirs {
		if err := os.MkdirAll(filepath.Join(dir, d.name), d.mode); err != nil {
			return err
		}
	}
	for name, data := range files {
		if _, err := os.Lstat(filepath.Join(dir, "ca", name)); err == nil {
			continue
		}
		if err := durable.WriteFile(filepath.Join(dir, "ca", name), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// Restored is what a restore did.
type Restored struct {
	Epoch  uint64
	Closed []string // nodes whose grant was open
	Ended  int      // certificates that had ended, and the restored record did not know
	// Lost are, of those, the ones that were revoked and that nothing tells the node of: what they were given for is
	// not barred.
	Lost   int
	Unread []string // nodes whose record is damaged, and so was left as it is, in either store
	mark   mark
	freed  map[string]bool // names whose board was changed
}

// Settle makes a restored store one that may be signed from: no grant that was not used is left open, nothing
// that has ended comes to life again, and CRL numbers go on from the greatest that anybody has
// seen. st is the restored store, and current the one that it replaces, nil where there is none that can be read.
//
// The epoch comes last, in one transaction with the entry of the journal that tells of the restore: until
// then the witness speaks against the store. Errors: ErrClockBack, ErrOtherCAs.
func Settle(ctx context.Context, dir string, st store.Store, current store.Reader, fields map[string]string, now time.Time) (*Restored, error) {
	b := &batch{ctx: ctx, st: st}
	cas, err := settleCAs(ctx, b, dir, current)
	if err != nil {
		return nil, err
	}
	seen, err := whatWasSeen(ctx, dir, cas, current)
	if err != nil {
		return nil, err
	}
	g, err := readGeneration(ctx, st)
	if err != nil && !errors.Is(err, store.ErrDamaged) { // the witness knows more than a record that is damaged
		return nil, err
	}
	if err := seen.addCRLRecords(ctx, st); err != nil {
		return nil, err
	}
	if floor := later(seen.last, lastEntry(ctx, st)); now.Before(floor.Add(-clockSlack)) {
		return nil, fmt.Errorf("%w, %s", ErrClockBack, floor.UTC().Format(time.RFC3339))
	}
	done := &Restored{Epoch: max(g.Epoch, seen.epoch) + 1, freed: map[string]bool{}}
	if err := done.settleSlots(b, seen, current); err != nil {
		return nil, err
	}
	if err := done.dropKeys(b); err != nil {
		return nil, err
	}
	if err := done.addRevoked(b, current); err != nil {
		return nil, err
	}
	if err := done.addEnded(b, seen.ended, current); err != nil {
		return nil, err
	}
	for key, name := range seen.barred {
		if err := b.put(store.Put{Key: key, Value: name}); err != nil {
			return nil, err
		}
	}
	highest := seen.highest()
	for id, crl := range seen.crls {
		crl.Number = max(crl.Number, seen.number) // the witness does not say of which CA
		if err := b.put(put(prefixCRL+id, crl)); err != nil {
			return nil, err
		}
	}
	if err := b.flush(); err != nil {
		return nil, err
	}
	fields["epoch"], fields["closed"] = strconv.FormatUint(done.Epoch, 10), strconv.Itoa(len(done.Closed))
	fields["ended"], fields["crl"] = strconv.Itoa(done.Ended), strconv.FormatInt(highest.Number, 10)
	err = st.Commit(ctx, store.Tx{
		Puts:   []store.Put{put(keyEpoch, generation{done.Epoch})},
		Events: []store.Event{event(now, "restore", "", fields)},
	})
	if err != nil {
		return nil, err
	}
	tail, err := st.Tail(ctx)
	done.mark = mark{Epoch: done.Epoch, Seq: tail.Seq, Hash: tail.Hash, CRL: highest}
	return done, err
}

// settleSlots closes grants, and takes certificates that have ended out of the records. A record that is damaged
// gives nobody anything, and is left as it is.
func (r *Restored) settleSlots(b *batch, seen *evidence, current store.Reader) error {
	for item, err := range b.st.List(b.ctx, prefixSlot) {
		var s *slot
		if err == nil {
			s, err = parse[slot](item)
		}
		if errors.Is(err, store.ErrDamaged) {
			r.Unread = append(r.Unread, strings.TrimPrefix(item.Key, prefixSlot))
			continue
		}
		if err != nil {
			return err
		}
		changed := false
		if s.Grant != nil && !s.Grant.Used {
			r.Closed = append(r.Closed, s.Node)
			s.Grant, changed = nil, true
		}
		changed = seen.endCertificates(s) || changed
		carried, err := r.carrySlot(b, s, current)
		if err != nil {
			return err
		}
		if !changed && !carried {
			continue
		}
		if err := b.put(put(item.Key, s)); err != nil {
			return err
		}
	}
	return nil
}

// endCertificates takes from a slot what has ended. What was revoked ends the node.
func (seen *evidence) endCertificates(s *slot) (changed bool) {
	for _, c := range []**issued{&s.Cert, &s.Old} {
		if *c == nil {
			continue
		}
		e, ok := seen.ended[(*c).Serial]
		if !ok {
			continue
		}
		if e.Reason != superseded {
			s.Revoked, s.Grant = true, nil
			seen.barred[prefixBarred+(*c).Key] = []byte(s.Node)
		}
		*c, changed = nil, true
	}
	if s.Cert == nil {
		s.Cert, s.Old = s.Old, nil
	}
	return changed
}

// addEnded keeps what had ended, for as long as its certificate may be used, which a CRL does not tell.
func (r *Restored) addEnded(b *batch, over map[string]ended, current store.Reader) error {
	for serial, e := range over {
		item, err := b.st.Get(b.ctx, prefixEnded+serial)
		if err != nil && !errors.Is(err, store.ErrDamaged) {
			return err
		}
		if err != nil || item.Revision != 0 {
			continue // one that is damaged is listed all the same
		}
		r.Ended++
		c := certOf(b.ctx, b.st, serial)
		if c == nil && current != nil {
			c = certOf(b.ctx, current, serial)
		}
		switch {
		case c != nil:
			e.NotAfter = c.NotAfter
		case e.Reason != superseded:
			r.Lost++
		}
		if err := b.put(put(prefixEnded+serial, e)); err != nil {
			return err
		}
	}
	return nil
}

// certOf is what a store knows of a certificate; nil: nothing that can be read.
func certOf(ctx context.Context, st store.Reader, serial string) *certRecord {
	item, err := st.Get(ctx, prefixCert+serial)
	if err != nil || item.Revision == 0 {
		return nil
	}
	c, err := parse[certRecord](item)
	if err != nil {
		return nil
	}
	return c
}

// evidence is what is known outside of a restored store.
type evidence struct {
	epoch  uint64
	number int64                // of a CRL, whichever
	crls   map[string]crlRecord // by the CA's id
	last   time.Time            // the last moment on record
	ended  map[string]ended     // by serial
	barred map[string][]byte    // the name that had the key, by the record's key
}

// whatWasSeen asks the witness, the CRL in public/ and the store that is to be replaced, as far as they can
// be read: a store that cannot is why there are restores.
func whatWasSeen(ctx context.Context, dir string, cas caRecord, current store.Reader) (*evidence, error) {
	seen := &evidence{ended: map[string]ended{}, crls: map[string]crlRecord{}, barred: map[string][]byte{}}
	if book, err := openWitness(dir); err == nil {
		book.file.Close()
		seen.epoch, seen.number, seen.last = book.last.Epoch, book.last.CRL.Number, book.last.CRL.ThisUpdate
	}
	for _, m := range cas.Members {
		cert, err := x509.ParseCertificate(m.Cert)
		if err != nil {
			return nil, err
		}
		if err := seen.addCRL(dir, &authority{cert: cert, role: m.Role, since: m.Since}); err != nil {
			return nil, err
		}
	}
	if current == nil {
		return seen, nil
	}
	seen.last = later(seen.last, lastEntry(ctx, current))
	if g, err := readGeneration(ctx, current); err == nil {
		seen.epoch = max(seen.epoch, g.Epoch)
	}
	seen.addCRLRecords(ctx, current) // as far as they can be read
	seen.addBarred(ctx, current)
	for item, err := range current.List(ctx, prefixEnded) {
		if err != nil {
			continue
		}
		if e, err := parse[ended](item); err == nil {
			seen.ended[item.Key[len(prefixEnded):]] = *e
		}
	}
	return seen, nil
}

// lastEntry is the time of a store's last entry, zero if it cannot be read.
func lastEntry(ctx context.Context, st store.Reader) time.Time {
	tail, err := st.Tail(ctx)
	if err != nil {
		return time.Time{}
	}
	for e, err := range st.Journal(ctx, tail.Seq) {
		if err == nil {
			return e.Time
		}
	}
	return time.Time{}
}

// addCRL reads the CRL that was published last. One that the CA did not sign says nothing.
func (seen *evidence) addCRL(dir string, ca *authority) error {
	path := filepath.Join(dir, "public", ca.id()+crlSuffix)
	der, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	list, err := x509.ParseRevocationList(der)
	if err == nil {
		err = list.CheckSignatureFrom(ca.cert)
	}
	if err != nil {
		return fmt.Errorf("%s is not a CRL of this CA (%v): move it away, or put the last one there", path, err)
	}
	seen.crl(ca.id(), crlRecord{list.Number.Int64(), list.ThisUpdate})
	for _, e := range list.RevokedCertificateEntries {
		if ca.endedWith(e) {
			continue
		}
		// Its end is not in a CRL. It was signed before this list was.
		last := earlier(ca.cert.NotAfter, list.ThisUpdate.Add(MaxLife))
		seen.ended[serialHex(e.SerialNumber)] = ended{CA: ca.id(), At: e.RevocationTime, Reason: crlReason(e.ReasonCode), NotAfter: last}
	}
	return nil
}

// endedWith says whether a certificate is on the list because the CA itself ended: its node was not revoked, and
// comes back with the same key.
func (a *authority) endedWith(e x509.RevocationListEntry) bool {
	return a.ended() && crlReason(e.ReasonCode) == a.endReason() && e.RevocationTime.Equal(a.since.Truncate(time.Second))
}

// crl notes one more CRL of a CA.
func (seen *evidence) crl(id string, r crlRecord) {
	seen.crls[id] = seen.crls[id].orLater(r)
	seen.last = later(seen.last, r.ThisUpdate)
}

func (seen *evidence) addCRLRecords(ctx context.Context, st store.Reader) error {
	for item, err := range st.List(ctx, prefixCRL) {
		var r *crlRecord
		if err == nil {
			r, err = parse[crlRecord](item)
		}
		switch {
		case errors.Is(err, store.ErrDamaged):
			r = &crlRecord{} // the witness and the CRL know
		case err != nil:
			return err
		}
		seen.crl(strings.TrimPrefix(item.Key, prefixCRL), *r)
	}
	return nil
}

// highest is, of all CRLs, the greatest number and the last moment.
func (seen *evidence) highest() crlRecord {
	all := crlRecord{Number: seen.number}
	for _, r := range seen.crls {
		all = all.orLater(r)
	}
	return all
}

// RenewEpochs draws a first epoch key: no answer to a challenge from before is good any more. It comes before
// a restored store is put in its place.
func RenewEpochs(dir string, now time.Time) error {
	return durable.WriteFile(filepath.Join(dir, epochFile), attest.NewEpochs(now).Marshal(), 0o600)
}

// Witness makes the witness speak for the restored store. It comes after the store is in its place; a crash
// before it leaves a witness of an earlier epoch, which is no contradiction.
func (r *Restored) Witness(dir string) error {
	_, err := writeWitness(dir, r.mark)
	return err
}
