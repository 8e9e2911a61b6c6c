package signer

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"muster/internal/wire"
	"muster/signer/store"
	"muster/signer/store/bolt"
)

// tb is what the helpers need of *testing.T and *rapid.T.
type tb interface {
	Helper()
	Errorf(format string, args ...any)
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// site is a head with its state directory, its clock and all that it has logged.
type site struct {
	*Head
	t     tb
	dir   string
	store store.Store
	clock *clock
	log   *lockedBuffer
	alone bool                          // nothing synchronises the clock
	asked atomic.Int64                  // how often a head asked that
	wrap  func(store.Store) store.Store // put between head and store at the next open; nil: nothing
}

// newSite makes a cluster in a fresh directory and opens its head.
func newSite(t *testing.T) *site {
	t.Helper()
	s := siteIn(t, t.TempDir())
	t.Cleanup(func() { s.store.Close() })
	return s
}

func siteIn(t tb, dir string) *site {
	t.Helper()
	s := &site{t: t, dir: dir, clock: &clock{at: noon}, log: &lockedBuffer{}}
	s.must(bolt.Create(s.dbPath(), "head1"))
	s.openStore()
	_, err := Init(context.Background(), s.dir, s.store, testPlan(), s.clock.now())
	s.must(err)
	s.open()
	return s
}

func testPlan() Plan {
	return Plan{Cluster: "Muster", TrustDomain: "hpc.example", Hosts: []string{"head", "127.0.0.1"}}
}

func (s *site) dbPath() string { return filepath.Join(s.dir, "store.db") }

func (s *site) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) openStore() {
	s.t.Helper()
	st, err := bolt.Open(s.dbPath(), time.Minute)
	s.must(err)
	s.store = st
}

// open makes a new Head over the open store.
func (s *site) open() {
	s.t.Helper()
	h, err := s.another()
	s.must(err)
	s.Head = h
}

// another makes one more Head over the same store, as a second head of the cluster would be.
func (s *site) another() (*Head, error) {
	st := s.store
	if s.wrap != nil {
		st = s.wrap(st)
	}
	return Open(context.Background(), Config{
		Dir: s.dir, Store: st, PublicURL: "http://head:8080", Now: s.clock.now, Elapsed: s.clock.elapsed, Synchronised: func() bool { s.asked.Add(1); return !s.alone },
		Log: slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
}

// restart ends the process, as far as the head can tell, and starts it again.
func (s *site) restart() {
	s.t.Helper()
	s.must(s.store.Close())
	s.openStore()
	s.open()
}

// enable opens a grant of an hour at level tofu unless options say otherwise.
func (s *site) enable(name string, options ...func(*EnableRequest)) {
	s.t.Helper()
	s.must(s.tryEnable(name, options...))
}

func (s *site) tryEnable(name string, options ...func(*EnableRequest)) error {
	req := EnableRequest{IDs: []string{name}, For: time.Hour, Level: wire.TOFU}
	for _, option := range options {
		option(&req)
	}
	_, err := s.adminEnable(context.Background(), req, noStream())
	return err
}

func pinned(ek string) func(*EnableRequest) {
	return func(r *EnableRequest) { r.Level, r.EK = wire.Pinned, ek }
}

func atLevel(l wire.Level) func(*EnableRequest) { return func(r *EnableRequest) { r.Level = l } }

func (s *site) disable(name string) {
	s.t.Helper()
	_, err := s.adminDisable(context.Background(), DisableRequest{IDs: []string{name}}, noStream())
	s.must(err)
}

func noStream() *stream {
	w := httptest.NewRecorder()
	return &stream{json.NewEncoder(w), http.NewResponseController(w)}
}

// record reads a slot.
func (s *site) record(name string) *slot {
	s.t.Helper()
	item, err := s.store.Get(context.Background(), prefixSlot+name)
	s.must(err)
	rec, err := parse[slot](item)
	s.must(err)
	return rec
}

// putRecord writes a slot as only a test may.
func (s *site) putRecord(rec *slot) {
	s.t.Helper()
	s.must(s.store.Commit(context.Background(), store.Tx{Puts: []store.Put{put(prefixSlot+rec.Node, rec)}}))
}

func (s *site) journal() []store.Entry {
	s.t.Helper()
	var entries []store.Entry
	for e, err := range s.store.Journal(context.Background(), 1) {
		s.must(err)
		entries = append(entries, e)
	}
	return entries
}

// reason is what `muster why` has for a name.
func (s *site) reason(name string) reason {
	last := s.seen.of(name).last
	if last == nil {
		return ""
	}
	return last.Reason
}

// enroller is a node: a key in a chip, or a standin.
type enroller interface {
	ChallengeRequest(node string) wire.ChallengeRequest
	Answer(node string, c wire.Challenge) (wire.EnrollRequest, error)
	Signer() crypto.Signer
}

// reply is what a peer sees of an answer.
type reply struct {
	status int
	header http.Header
	body   []byte
}

// code is that of an error; empty for a success.
func (r reply) code() wire.Code {
	var e wire.Error
	if r.status == http.StatusOK || json.Unmarshal(r.body, &e) != nil {
		return ""
	}
	return e.Code
}

// post sends a body to a head's handler, without a network in between.
func post(h *Head, path string, body []byte) reply {
	r := httptest.NewRequest(http.MethodPost, path, bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	h.NodeHandler().ServeHTTP(w, r)
	return reply{w.Code, w.Header(), w.Body.Bytes()}
}

func (s *site) post(path string, message any) reply { return post(s.Head, path, wire.Encode(message)) }

// challenged is leg 1 that must succeed.
func (s *site) challenged(node enroller, name string) wire.Challenge {
	s.t.Helper()
	r := s.post(wire.PathChallenge, node.ChallengeRequest(name))
	return decoded[wire.Challenge](s.t, r)
}

// answered is a right answer to a fresh challenge.
func (s *site) answered(node enroller, name string) wire.EnrollRequest {
	s.t.Helper()
	a, err := node.Answer(name, s.challenged(node, name))
	s.must(err)
	return a
}

// enrol is both legs, which must succeed.
func (s *site) enrol(node enroller, name string) wire.Enrolled {
	s.t.Helper()
	return decoded[wire.Enrolled](s.t, s.post(wire.PathEnroll, s.answered(node, name)))
}

func decoded[T any](t tb, r reply) T {
	t.Helper()
	var v T
	if r.status != http.StatusOK {
		t.Fatalf("got %d %s", r.status, r.body)
	}
	if err := json.Unmarshal(r.body, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func certificate(t tb, der []byte) *x509.Certificate {
	t.Helper()
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// use shows a certificate to a head as an mTLS connection with it does.
func use(h *Head, cert *x509.Certificate) wire.Code {
	_, no := h.self(context.Background(), cert, &peer{})
	if no != nil {
		return no.code
	}
	return ""
}

// refusedWith fails the test unless r is exactly the answer for a code.
func refusedWith(t tb, r reply, want wire.Code) {
	t.Helper()
	if r.code() != want || r.status != want.Status() {
		t.Errorf("got %d %s, want %s", r.status, r.body, want)
	}
}

// clock is the head's, moved by hand.
type clock struct {
	mu   sync.Mutex
	at   time.Time
	gone time.Duration
}

// noon is not a whole second: certificates round, records need not.
var noon = time.Date(2026, 6, 1, 12, 0, 0, 123456789, time.UTC)

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

// elapsed is the clock that nobody sets.
func (c *clock) elapsed() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gone
}

// move lets time go by, or sets the clock back.
func (c *clock) move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at, c.gone = c.at.Add(d), c.gone+max(d, 0)
}

// set sets the clock, by so much.
func (c *clock) set(by time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(by)
}

// lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) Bytes() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.b.Bytes())
}
