package agent

import (
	"bytes"
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"muster/internal/template"
	"muster/internal/wire"
)

// fakeHead decides as a head does, for one slot. The real one is tried in the system tests; this
// one can also lie.
type fakeHead struct {
	t        *testing.T
	ca       *ca
	url      *url.URL
	tcp      *server
	mu       sync.Mutex
	enabled  bool
	key      []byte // SPKI of the bound key
	cert     *x509.Certificate
	next     *x509.Certificate // of a renewal
	active   bool
	disabled bool
	barred   map[string]bool // by SPKI
	revoked  bool
	epoch    []byte
	calls    []string // paths, in order
	stale    int      // challenges whose answer is to be stale
	reports  []wire.Report
	now      func() time.Time

	renewAt time.Time // zero: no renewal
	renewal func(old *x509.Certificate) (*x509.Certificate, wire.Code)

	lie     func(*wire.Challenge)
	forge   func(pub crypto.PublicKey) *x509.Certificate
	further []*x509.Certificate // the node certificate's issuer and up, when it is not ca
}

func newHead(t *testing.T) *fakeHead {
	h := &fakeHead{t: t, ca: newCA(t, "ca"), barred: map[string]bool{}, epoch: []byte("epoch key"), now: func() time.Time { return day0 }}
	h.url, h.tcp = listen(t, h.ca.head(t, nil), h)
	return h
}

func (h *fakeHead) paths() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := h.calls
	h.calls = nil
	return list
}

func (h *fakeHead) set(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
}

// revoke ends the certificate and bars its key.
func (h *fakeHead) revoke() {
	h.set(func() { h.revoked, h.enabled, h.barred[string(h.key)] = true, false, true })
}

// again is `muster certs enable --again`.
func (h *fakeHead) again() {
	h.set(func() { h.revoked, h.enabled, h.key, h.cert, h.active = false, true, nil, nil, false })
}

func (h *fakeHead) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls = append(h.calls, r.URL.Path)
	body, _ := io.ReadAll(r.Body)
	var answer any
	var code wire.Code
	switch r.Method + " " + r.URL.Path {
	case "POST " + wire.PathChallenge:
		answer, code = h.challenge(body)
	case "POST " + wire.PathEnroll:
		answer, code = h.enroll(body)
	case "GET " + wire.PathSelf:
		answer, code = h.self(r)
	case "POST " + wire.PathRenew:
		answer, code = h.renew(r, body)
	case "POST " + wire.PathReport:
		answer, code = h.report(body)
	default:
		code = wire.NotFound
	}
	if code != "" {
		w.WriteHeader(code.Status())
		answer = wire.Error{Code: code, Message: "says the test"}
	}
	json.NewEncoder(w).Encode(answer)
}

func (h *fakeHead) transcript(ek *tpm2.TPMTPublic, key []byte, csr []byte, exp int64) *wire.Transcript {
	pub, err := template.Parse(key)
	if err != nil {
		h.t.Error(err)
		return nil
	}
	ekSum, _ := template.Fingerprint(ek)
	ekName, _ := tpm2.ObjectName(ek)
	keyName, _ := tpm2.ObjectName(pub)
	return &wire.Transcript{
		Cluster: "c", Purpose: wire.PurposeEnroll, Grant: "g", Slot: "n0", Exp: exp, Epoch: "e", EK: ekSum,
		EKName: ekName.Buffer, KeyName: keyName.Buffer, CSR: sha256.Sum256(csr), Level: wire.TOFU,
	}
}

func (h *fakeHead) mayHave(spki []byte) wire.Code {
	switch {
	case h.revoked:
		return wire.NotEnabled // to a peer that has proved nothing
	case h.barred[string(spki)]:
		return wire.KeyBarred
	case h.key != nil && !bytes.Equal(h.key, spki):
		return wire.Refused
	case h.cert == nil && !h.enabled:
		return wire.NotEnabled
	}
	return ""
}

func (h *fakeHead) challenge(body []byte) (any, wire.Code) {
	var req wire.ChallengeRequest
	if err := wire.Decode(body, &req); err != nil {
		h.t.Errorf("leg 1: %v", err)
		return nil, wire.BadRequest
	}
	csr, err := x509.ParseCertificateRequest(req.CSR)
	if err != nil || csr.CheckSignature() != nil {
		h.t.Errorf("leg 1: CSR: %v", err)
		return nil, wire.BadRequest
	}
	if code := h.mayHave(csr.RawSubjectPublicKeyInfo); code != "" {
		return nil, code
	}
	ek, err := template.Parse(req.EKs[0].Pub)
	if err != nil {
		h.t.Error(err)
		return nil, wire.BadRequest
	}
	exp := h.now().Add(5 * time.Minute).Unix()
	t := h.transcript(ek, req.Key, req.CSR, exp)
	wrap, err := tpm2.ImportEncapsulationKey(ek)
	if err != nil {
		h.t.Error(err)
		return nil, wire.BadRequest
	}
	id, enc, err := tpm2.CreateCredential(rand.Reader, wrap, t.KeyName, t.Secret(h.epoch))
	if err != nil {
		h.t.Error(err)
	}
	ch := &wire.Challenge{
		Cluster: "c", Grant: "g", Slot: "n0", Level: wire.TOFU, Exp: exp, Epoch: "e", EK: hex.EncodeToString(t.EK[:]),
		IDObject: id, EncSecret: enc, Time: h.now().Unix(),
	}
	if h.lie != nil {
		h.lie(ch)
	}
	return ch, ""
}

func (h *fakeHead) enroll(body []byte) (any, wire.Code) {
	var req wire.EnrollRequest
	if err := wire.Decode(body, &req); err != nil || len(req.EKs) != 1 || req.EKs[0].Certs != nil {
		h.t.Errorf("leg 2: %v", err)
		return nil, wire.BadRequest
	}
	ek, err := template.Parse(req.EKs[0].Pub)
	if err != nil {
		h.t.Error(err)
		return nil, wire.BadRequest
	}
	t := h.transcript(ek, req.Key, req.CSR, req.Exp)
	if h.stale > 0 || !hmac.Equal(req.Proof, t.Proof(t.Secret(h.epoch))) {
		h.stale--
		return nil, wire.StaleChallenge
	}
	csr, _ := x509.ParseCertificateRequest(req.CSR)
	if code := h.mayHave(csr.RawSubjectPublicKeyInfo); code != "" {
		return nil, code
	}
	if h.cert == nil {
		h.key, h.enabled = csr.RawSubjectPublicKeyInfo, false
		h.cert = h.ca.node(h.t, "n0", csr.PublicKey, nil)
		if h.forge != nil {
			h.cert = h.forge(csr.PublicKey)
		}
	}
	answer := &wire.Enrolled{Cert: h.cert.Raw, State: "issued", Time: h.now().Unix()}
	for _, c := range h.further {
		answer.Chain = append(answer.Chain, c.Raw)
	}
	return answer, ""
}

// renew knows of one renewal, for the key that there is. Until it is used the old certificate serves as well.
func (h *fakeHead) renew(r *http.Request, body []byte) (any, wire.Code) {
	if string(body) != `{"v":1}` || len(r.TLS.PeerCertificates) == 0 || !r.TLS.PeerCertificates[0].Equal(h.cert) {
		h.t.Errorf("renewal %s", body)
		return nil, wire.BadRequest
	}
	next, code := h.renewal(h.cert)
	if code != "" {
		return nil, code
	}
	h.next = next
	return &wire.Enrolled{Cert: next.Raw, State: "issued", Time: h.now().Unix()}, ""
}

func (h *fakeHead) report(body []byte) (any, wire.Code) {
	var said wire.Report
	if err := wire.Decode(body, &said); err != nil || !said.Code.Known() || said.V != wire.Version {
		h.t.Errorf("report %s: %v", body, err)
		return nil, wire.BadRequest
	}
	h.reports = append(h.reports, said)
	return &wire.Reported{}, ""
}

func (h *fakeHead) self(r *http.Request) (any, wire.Code) {
	if h.next != nil && len(r.TLS.PeerCertificates) > 0 && r.TLS.PeerCertificates[0].Equal(h.next) {
		h.cert, h.next, h.renewAt = h.next, nil, time.Time{}
	}
	switch {
	case len(r.TLS.PeerCertificates) == 0 || h.cert == nil || !r.TLS.PeerCertificates[0].Equal(h.cert):
		return nil, wire.NotEnabled
	case h.revoked:
		return nil, wire.Revoked
	}
	h.active = true
	state := "act\u202eive\u009b"
	if h.disabled {
		state = stateDisabled
	}
	return &wire.Self{Node: "n0", Serial: serialHex(h.cert.SerialNumber), State: state, Level: wire.TOFU,
		Expires: h.cert.NotAfter, RenewAt: h.renewAt, Time: h.now().Unix()}, ""
}
