// Package signer is the head: it decides which node gets a certificate, signs it once, and
// remembers it.
//
// The files follow the flow: init.go makes a cluster; enable.go opens a grant; challenge.go is leg 1,
// with what an EK's certificates prove in vouched.go, enroll.go leg 2 with the one transaction that
// claims the grant and stores the certificate; approve.go is who waits for the administrator,
// replace.go a board that was changed; sign.go and ca.go make certificates, crl.go the revocation
// list, ocsp.go the answers of OCSP; self.go is a node's first and later use of its certificate;
// report.go is what a node says went wrong, why.go and explain.go what the administrator is told.
// node.go, public.go, admin.go and est.go are the listeners; estenroll.go is what an EST client gets,
// names.go whose a name is.
// What a peer must prove is decided in package attest, what a TPM's maker vouches for in package
// ekroots, what is remembered in package store.
package signer

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"muster/internal/durable"
	"muster/internal/journal"
	"muster/internal/wire"
	"muster/signer/attest"
	"muster/signer/ekroots"
	"muster/signer/store"
)

var headEKU = []asn1.ObjectIdentifier{wire.HeadEKU}

// Config is what a head needs to run. Dir and Store must be set.
type Config struct {
	Dir   string      // state directory: ca/, epoch.key, public/
	Store store.Store // opened; the caller closes it
	// PublicURL is where nodes and others reach the public listener, as certificates name it:
	// http://HOST:PORT. Empty: the cluster's first host with the port of PublicAddr.
	PublicURL  string
	PublicAddr string
	Passphrase Passphrase // of the CA's key, where that is encrypted
	Limits     Limits
	Now        func() time.Time // nil: time.Now
	// Elapsed is a clock that nobody sets, from any moment on; nil: the kernel's monotonic one.
	Elapsed func() time.Duration
	// Synchronised says whether NTP or the like disciplines the clock; nil: adjtimex(2).
	Synchronised func() bool
	Log          *slog.Logger // nil: discard
}

// Head is a running head.
type Head struct {
	dir        string
	store      store.Store
	publicURL  string
	passphrase Passphrase // for the keys of the CAs that a rotation makes
	now        func() time.Time
	elapsed    func() time.Duration
	log        *slog.Logger
	inTime     func() bool // whether something disciplines the clock; see inSync

	queue time.Duration // see Limits
	gate  *gate         // of all listeners but the admin's

	cluster    cluster                  // but for its hosts, which change
	hosts      atomic.Pointer[[]string] // names and addresses in the heads' certificates
	ring       atomic.Pointer[ring]
	adopting   sync.Mutex // of a ring
	following  sync.Mutex // of the ring on record
	verifier   attest.Verifier
	rekeying   sync.Mutex   // of its epochs
	floor      atomic.Int64 // Unix seconds of the last record: the clock may not be before
	pace       pace
	server     atomic.Pointer[tls.Certificate]
	serving    sync.Mutex // of server
	crlAsked   chan struct{}
	publishing sync.Mutex // of CRLs
	answers    ocspAnswers
	rotating   sync.Mutex    // of the ring's successors
	rehosting  sync.Mutex    // of the hosts' successors
	working    chan struct{} // a token for each request that does public-key work
	seen       *sightings
	refusals   *throttle
	reports    *reportLimit
	passwords  *passwordLimit
	renewals   *tally // of EST clients
	makers     *ekroots.Dir
	full       fullness // of the quarantine
	writable   probe
	timed      probe // what inTime said

	epoch   atomic.Uint64               // of the store, see generation
	book    atomic.Pointer[witnessBook] // nil until there is one
	setBack *refusal                    // why the store may not be signed from; nil if it may
}

// Open loads what `muster init` made, and refuses to make any of it: ErrNotInitialised. Where it fails
// (ErrNoPassphrase, ErrPassphrase, ErrPublicURL are others) nothing has changed.
func Open(ctx context.Context, cfg Config) (*Head, error) {
	h := &Head{
		dir: cfg.Dir, passphrase: cfg.Passphrase,
		now: cfg.Now, elapsed: cfg.Elapsed, inTime: cfg.Synchronised, log: cfg.Log,
		crlAsked:  make(chan struct{}, 1),
		answers:   ocspAnswers{of: map[certID]*ocspAnswer{}},
		working:   make(chan struct{}, 2*runtime.GOMAXPROCS(0)),
		seen:      newSightings(),
		refusals:  &throttle{last: map[string]time.Time{}},
		reports:   &reportLimit{},
		passwords: &passwordLimit{},
		renewals:  &tally{},
	}
	limits := cfg.Limits.orDefault()
	h.gate, h.queue = newGate(limits), limits.Queue
	if h.now == nil {
		h.now = time.Now
	}
	if h.elapsed == nil {
		began := time.Now()
		h.elapsed = func() time.Duration { return time.Since(began) }
	}
	if h.inTime == nil {
		h.inTime = synchronised
	}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	h.store = witnessing{cfg.Store, h}
	h.makers = ekroots.In(filepath.Join(cfg.Dir, "ek-roots"), func(err error) {
		h.try("a certificate of a TPM's maker is not read", err)
	})
	for _, load := range []func(context.Context) error{h.loadCluster, h.loadWitness, h.loadRing, h.loadEpochs, h.loadCRLs, h.loadFloor, h.loadPace} {
		if err := load(ctx); err != nil {
			return nil, err
		}
	}
	if err := h.setPublicURL(cfg); err != nil {
		return nil, err
	}
	// A head that cannot sign still starts: it serves the last CRL and the administrator, and tries
	// again (I8).
	h.try("witness not begun", h.beginWitness(ctx))
	h.try("server certificate not made", h.renewServer(ctx))
	h.try("certificate for OCSP not made", h.renewResponders(ctx))
	h.try("CRL not signed", h.signCRLs(ctx))
	return h, nil
}

// ErrNotInitialised: there is no cluster here; `muster init` makes one.
var ErrNotInitialised = errors.New("no cluster here")

func (h *Head) loadCluster(ctx context.Context) error {
	item, err := h.store.Get(ctx, keyCluster)
	if err != nil {
		return err
	}
	if item.Revision == 0 {
		return fmt.Errorf("%s: %w", h.dir, ErrNotInitialised)
	}
	c, err := parse[cluster](item)
	if err != nil {
		return err
	}
	h.cluster = *c
	h.hosts.Store(&c.Hosts)
	return nil
}

// ErrPublicURL: the public URL is not one that a certificate may name.
var ErrPublicURL = errors.New("not a URL for certificates")

func (h *Head) setPublicURL(cfg Config) error {
	if cfg.PublicURL == "" {
		_, port, err := net.SplitHostPort(cfg.PublicAddr)
		if err != nil {
			port = "8080"
		}
		h.publicURL = "http://" + net.JoinHostPort((*h.hosts.Load())[0], port)
		return nil
	}
	u, err := url.Parse(cfg.PublicURL)
	if err != nil || u.Scheme != "http" || u.Host == "" || u.RawQuery != "" {
		return fmt.Errorf("%w: %q (http://HOST:PORT)", ErrPublicURL, cfg.PublicURL)
	}
	h.publicURL = strings.TrimSuffix(cfg.PublicURL, "/")
	return nil
}

// Pin is what nodes trust this head by.
func (h *Head) Pin() string { return h.ca().pin() }

// Cluster is the cluster's name.
func (h *Head) Cluster() string { return h.cluster.Name }

func (h *Head) loadEpochs(context.Context) error {
	b, err := os.ReadFile(filepath.Join(h.dir, epochFile))
	if err != nil {
		return err
	}
	h.verifier.Epochs, err = attest.ParseEpochs(b)
	return err
}

// loadFloor finds the last moment on record: the last entry's, or the CRL's, which the witness has seen too, where that
// is later, as it is when entries were made by a clock that is back. A damaged last entry must not stop the head.
func (h *Head) loadFloor(ctx context.Context) error {
	h.floor.Store(h.ca().cert.NotBefore.Unix())
	tail, err := h.store.Tail(ctx)
	if err != nil {
		return err
	}
	for last, err := range h.store.Journal(ctx, tail.Seq) {
		if err != nil {
			h.log.Error("journal is damaged", "event", journal.JournalDamaged, "entry", last.Seq, "err", err)
			continue
		}
		h.signed(last.Time)
	}
	for _, ca := range h.ring.Load().all() {
		_, last, err := h.lastCRL(ctx, ca)
		if err != nil {
			last, err = h.damagedCRL(ca, err)
		}
		if errors.Is(err, store.ErrDamaged) {
			h.log.Error("nothing tells the number of the last CRL, and so no other is signed", "event", journal.Upkeep, "ca", ca.id(), "err", err)
			continue
		}
		if err != nil {
			return err
		}
		h.signed(last.ThisUpdate)
	}
	if h.setBack == nil {
		h.signed(h.book.Load().crl().ThisUpdate)
	}
	return nil
}

// renewServer makes the key and certificate with which this process serves. The key is never on a
// disk; the certificate is on record before it is used.
func (h *Head) renewServer(ctx context.Context) error {
	now := h.now()
	if no := h.maySign(now); no != nil {
		return no
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	ca := h.ca()
	cert, err := h.certifyHead(ca, key.Public(), now)
	if err != nil {
		return err
	}
	if err := h.recordOwn(ctx, classHead, ca, cert, now); err != nil {
		return err
	}
	h.serving.Lock()
	defer h.serving.Unlock()
	// The roots go along: a node that knows only a hash finds them here.
	next := &tls.Certificate{Certificate: append([][]byte{cert.Raw}, h.ring.Load().sent()...), PrivateKey: key, Leaf: cert}
	if h.outdated(next) {
		h.crlDue() // the CA was turned meanwhile, or the names changed; tend looks again
		return nil
	}
	h.server.Store(next)
	return nil
}

// outdated says whether another CA signs now than the one that signed the server's certificate, or the heads have
// other names.
func (h *Head) outdated(server *tls.Certificate) bool {
	names, addresses := splitHosts(*h.hosts.Load())
	return !bytes.Equal(server.Leaf.AuthorityKeyId, h.ca().cert.SubjectKeyId) ||
		!slices.Equal(server.Leaf.DNSNames, names) || !slices.EqualFunc(server.Leaf.IPAddresses, addresses, net.IP.Equal)
}

// recordOwn puts on record a certificate that this head made for itself.
func (h *Head) recordOwn(ctx context.Context, kind class, ca *authority, cert *x509.Certificate, now time.Time) error {
	serial := serialHex(cert.SerialNumber)
	err := h.store.Commit(ctx, store.Tx{
		Puts: []store.Put{put(prefixCert+serial, certRecord{
			Class: kind, Name: cert.Subject.CommonName, CA: ca.id(), NotAfter: cert.NotAfter.UTC(), DER: cert.Raw,
		})},
		Events: []store.Event{event(now, string(kind)+"-cert", "", map[string]string{"serial": serial})},
	})
	if err == nil {
		h.signed(now)
	}
	return err
}

// crlPause is how long a head lets pass after it has signed a CRL because it was asked for: while a cluster renews,
// every first use asks for one. A revocation does not wait for that, see listRevoked.
const crlPause = 5 * time.Second

// tend keeps what ages fresh, until ctx ends: epoch key, own certificates, CRL.
func (h *Head) tend(ctx context.Context) error {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	crlAt, leaveAt := h.now().Add(crlEvery), h.now()
	asked, rested := h.crlAsked, (<-chan time.Time)(nil)
	for {
		crl := false
		select {
		case <-ctx.Done():
			return nil
		case <-asked:
			crl, asked, rested = true, nil, time.After(crlPause)
		case <-rested:
			asked, rested = h.crlAsked, nil
			continue
		case <-tick.C:
		}
		now := h.now()
		h.try("what another head did is not known", errors.Join(h.followRing(ctx), h.followHosts(ctx)))
		h.tidy()
		if h.verifier.Epochs.Due(now) {
			h.try("epoch key not changed", h.rotateEpoch())
		}
		if server := h.server.Load(); server == nil || h.outdated(server) || h.ca().aged(server.Leaf, now) {
			h.try("server certificate not renewed", h.renewServer(ctx))
		}
		h.try("certificate for OCSP not renewed", h.renewResponders(ctx))
		if crl || !now.Before(crlAt) {
			crlAt = now // until it is signed, each tick tries
			if h.try("CRL not signed", h.signCRLs(ctx)) {
				crlAt = now.Add(crlEvery)
			}
		}
		if !now.Before(leaveAt) { // it reads each record of a certificate
			leaveAt = now.Add(crlEvery)
			h.try("the next CA does not vouch for the one that signs", h.linkBack(ctx, now))
			h.leave(ctx, now)
			h.answers.forget(now)
		}
	}
}

func (h *Head) try(failed string, err error) (ok bool) {
	if err != nil {
		h.log.Error(failed, "event", journal.Upkeep, "err", err)
	}
	return err == nil
}

// rotateEpoch makes the next epoch key; the last one is good for a while yet.
func (h *Head) rotateEpoch() error {
	return h.replaceEpochs(func() *attest.Epochs { return h.verifier.Epochs.Rotated(h.now()) })
}

// replaceEpochs makes new keys durable before they are used: a challenge made just before a crash can be answered just
// after. One replacement follows from the one before it, lest a key that was thrown away come back as the last.
func (h *Head) replaceEpochs(by func() *attest.Epochs) error {
	h.rekeying.Lock()
	defer h.rekeying.Unlock()
	next := by()
	if err := durable.WriteFile(filepath.Join(h.dir, epochFile), next.Marshal(), 0o600); err != nil {
		return err
	}
	h.verifier.Epochs.Replace(next)
	return nil
}

// admit waits for a place to do public-key work in, and says busy when that takes too long. The
// caller calls done.
func (h *Head) admit(ctx context.Context) (done func(), no *refusal) {
	select {
	case h.working <- struct{}{}:
		return func() { <-h.working }, nil
	default:
	}
	wait := time.NewTimer(h.queue)
	defer wait.Stop()
	select {
	case h.working <- struct{}{}:
		return func() { <-h.working }, nil
	case <-wait.C:
	case <-ctx.Done():
	}
	return nil, refuse(wire.Busy, whyOverload, "too many requests at once")
}
