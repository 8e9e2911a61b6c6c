package signer

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	_ "crypto/sha1" // CertIDs are made with it still (RFC 5019, 2.1.1)
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ocsp"

	"muster/signer/store"
)

const (
	pathOCSP       = "/ocsp"
	maxOCSPRequest = 4 << 10 // bytes; one certificate takes about 110
	// ocspLife is for how long an answer says that it is good. It is signed anew, for who asks, after half of it.
	ocspLife = 24 * time.Hour
)

// oidNoCheck is id-pkix-ocsp-nocheck (RFC 6960, 4.2.2.2.1).
var oidNoCheck = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}

// responder signs OCSP answers in the name of one CA. Its key is in this process's memory only.
type responder struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// ocspAnswers are those that were signed and are good still, of one head.
//
// An answer is signed when somebody first asks for it, and the next when half of its life is over or the
// certificate has ended. So whoever asks, and however often, a CertID of a certificate on record costs two signatures a
// day, and all else none (I10). Answers made in advance would cost each enrolment two signatures more, and each start
// two for every certificate, where mostly nobody asks.
type ocspAnswers struct {
	mu sync.Mutex // held while one is signed, and for no disk: OCSP takes one processor at most
	of map[certID]*ocspAnswer
}

// certID is what a request names, once its issuer has been found.
type certID struct {
	ca, serial string
	hash       crypto.Hash
}

type ocspAnswer struct {
	der                    []byte
	end                    *ended // nil: good
	thisUpdate, nextUpdate time.Time
}

// The errors that an answer may be. They are not signed (RFC 6960, 4.2.1).
var (
	errMalformed = ocsp.ResponseError{Status: ocsp.Malformed}
	errTryLater  = ocsp.ResponseError{Status: ocsp.TryLater}
	// errNotOurs: of no CA of ours, or not on record (RFC 5019, 2.2.3).
	errNotOurs = ocsp.ResponseError{Status: ocsp.Unauthorized}
)

// renewResponders makes a key and a certificate for each CA's responder that has none, or an old one.
func (h *Head) renewResponders(ctx context.Context) error {
	now := h.now()
	var failed error
	for _, ca := range h.ring.Load().all() {
		if r := ca.responder.Load(); r == nil || ca.aged(r.cert, now) {
			failed = errors.Join(failed, h.renewResponder(ctx, ca, now))
		}
	}
	return failed
}

func (h *Head) renewResponder(ctx context.Context, ca *authority, now time.Time) error {
	if no := h.maySign(now); no != nil {
		return no
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	cert, err := h.certifyResponder(ca, key.Public(), now)
	if err != nil {
		return err
	}
	if err := h.recordOwn(ctx, classOCSP, ca, cert, now); err != nil {
		return err
	}
	if ca = h.ring.Load().byID(ca.id()); ca != nil {
		ca.responder.Store(&responder{cert, key})
	}
	return nil
}

// certifyResponder makes the certificate of a delegated responder (RFC 6960, 4.2.2.2). Nobody looks whether it is
// revoked, so its life is short.
func (h *Head) certifyResponder(ca *authority, pub crypto.PublicKey, now time.Time) (*x509.Certificate, error) {
	tmpl := &x509.Certificate{
		Subject: pkix.Name{
			CommonName:   fmt.Sprintf("%.50s OCSP %s", h.cluster.Name, ca.id()[:8]), // ub-common-name is 64
			Organization: []string{h.cluster.Name},
		},
		KeyUsage:        x509.KeyUsageDigitalSignature,
		ExtKeyUsage:     []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning},
		ExtraExtensions: []pkix.Extension{{Id: oidNoCheck, Value: asn1.NullBytes}},
	}
	der, err := ca.sign(tmpl, pub, headLife, now)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// ocspAnswer finds or makes the answer for one certificate. Errors are ocsp.ResponseError.
func (h *Head) ocspAnswer(ctx context.Context, req *ocsp.Request, now time.Time) (*ocspAnswer, error) {
	r := h.ring.Load()
	ca := r.issuerOf(req)
	if ca == nil || req.SerialNumber.Sign() <= 0 || req.SerialNumber.BitLen() > 128 {
		return nil, errNotOurs
	}
	id := certID{ca.id(), serialHex(req.SerialNumber), req.HashAlgorithm}
	end, err := h.certStatus(ctx, id)
	switch {
	case err == nil:
		if end == nil {
			end = r.ended(ca)
		}
		return h.signedAnswer(ca, id, req.SerialNumber, end, now)
	case err == errNotOurs:
		return nil, err
	case errors.Is(err, store.ErrDamaged): // it may be of the end
		return nil, errTryLater
	}
	return h.answers.last(id, now) // the store is down; what was signed stays true for its time (I8)
}

// issuerOf is the CA that a request means; nil: none of ours. Keys are compared, too, since subjects may be the same.
func (r *ring) issuerOf(req *ocsp.Request) *authority {
	is := func(sum, part []byte) bool {
		hash := req.HashAlgorithm.New()
		hash.Write(part)
		return bytes.Equal(sum, hash.Sum(nil))
	}
	for _, ca := range r.all() {
		bits, err := keyBits(ca.cert.PublicKey)
		if err == nil && is(req.IssuerKeyHash, bits) && is(req.IssuerNameHash, ca.cert.RawSubject) {
			return ca
		}
	}
	return nil
}

// certStatus reads from the record whether a certificate has ended; nil: it has not. errNotOurs: it is not on
// record, or was signed by another CA.
func (h *Head) certStatus(ctx context.Context, id certID) (*ended, error) {
	item, err := h.store.Get(ctx, prefixCert+id.serial)
	if err != nil {
		return nil, err
	}
	if item.Revision == 0 {
		return nil, errNotOurs
	}
	c, err := parse[certRecord](item)
	if err != nil {
		return nil, err
	}
	if c.CA != id.ca {
		return nil, errNotOurs
	}
	item, err = h.store.Get(ctx, prefixEnded+id.serial)
	if err != nil || item.Revision == 0 {
		return nil, err
	}
	return parse[ended](item)
}

// signedAnswer is the answer in memory, or a new one where that is due.
func (h *Head) signedAnswer(ca *authority, id certID, serial *big.Int, end *ended, now time.Time) (*ocspAnswer, error) {
	if old := h.answers.find(id); old.says(end) && old.fresh(now) {
		return old, nil
	}
	no := h.maySign(now) // which may wait for a disk
	h.answers.mu.Lock()
	defer h.answers.mu.Unlock()
	old := h.answers.of[id]
	says := old.says(end)
	if says && old.fresh(now) {
		return old, nil
	}
	if says {
		end = old.end
	}
	next, err := h.signAnswer(ca, id.hash, serial, end, old, no, now)
	switch {
	case err == nil:
		h.answers.of[id] = next
		return next, nil
	case says && now.Before(old.nextUpdate):
		return old, nil
	}
	h.log.Debug("OCSP answer not signed", "serial", id.serial, "err", err)
	return nil, errTryLater
}

// find is the answer in memory; nil: there is none.
func (a *ocspAnswers) find(id certID) *ocspAnswer {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.of[id]
}

// says says that a has end in it, if there is one. What has ended stays so: a request may have read the record before
// another did.
func (a *ocspAnswer) says(end *ended) bool { return a != nil && (end == nil || a.end != nil) }

// fresh says that a is in the first half of its life. One of the future was made by a clock that was ahead.
func (a *ocspAnswer) fresh(now time.Time) bool {
	age := now.Sub(a.thisUpdate)
	return age >= -clockSlack && age < ocspLife/2 && now.Before(a.nextUpdate)
}

// signAnswer makes an answer that follows old, unless no says why the head may not. The moments are whole minutes, as producedAt is, which may not be
// before thisUpdate.
func (h *Head) signAnswer(ca *authority, hash crypto.Hash, serial *big.Int, end *ended, old *ocspAnswer, no *refusal, now time.Time) (*ocspAnswer, error) {
	if no != nil {
		return nil, no
	}
	by := ca.responder.Load()
	if by == nil || !now.Before(by.cert.NotAfter) {
		return nil, errors.New("no responder")
	}
	next := &ocspAnswer{end: end, thisUpdate: now.UTC().Truncate(time.Minute)}
	if old != nil && old.fresh(now) {
		next.thisUpdate = later(next.thisUpdate, old.thisUpdate)
	}
	next.nextUpdate = next.thisUpdate.Add(ocspLife)
	if next.nextUpdate.After(by.cert.NotAfter) {
		next.nextUpdate = by.cert.NotAfter
	}
	answer := ocsp.Response{
		Status: ocsp.Good, SerialNumber: serial, IssuerHash: hash, Certificate: by.cert,
		ThisUpdate: next.thisUpdate, NextUpdate: next.nextUpdate,
	}
	if end != nil {
		answer.Status, answer.RevokedAt, answer.RevocationReason = ocsp.Revoked, end.At, int(end.Reason)
	}
	var err error
	next.der, err = ocsp.CreateResponse(ca.cert, by.cert, answer, by.key)
	return next, err
}

// last is the answer that was signed last, if it is still good.
func (a *ocspAnswers) last(id certID, now time.Time) (*ocspAnswer, error) {
	if old := a.find(id); old != nil && now.Before(old.nextUpdate) {
		return old, nil
	}
	return nil, errTryLater
}

// forget drops the answers that are over.
func (a *ocspAnswers) forget(now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, old := range a.of {
		if !now.Before(old.nextUpdate) {
			delete(a.of, id)
		}
	}
}

// serveOCSP answers RFC 6960 by the rules of RFC 5019. Errors too are HTTP 200, as clients want them.
func (h *Head) serveOCSP(w http.ResponseWriter, r *http.Request) {
	now := h.now()
	answer, err := h.askedOCSP(w, r, now)
	w.Header().Set("Content-Type", "application/ocsp-response")
	var status ocsp.ResponseError
	switch {
	case errors.As(err, &status):
		w.Header().Set("Cache-Control", "no-store")
		w.Write([]byte{0x30, 3, 0x0a, 1, byte(status.Status)}) // OCSPResponse of a status alone
	case r.Method == http.MethodPost: // no cache keeps it (RFC 9110, 9.3.3)
		w.Write(answer.der)
	default:
		serveSigned(w, r, answer.der, now, answer.thisUpdate, answer.nextUpdate)
	}
}

func (h *Head) askedOCSP(w http.ResponseWriter, r *http.Request, now time.Time) (*ocspAnswer, error) {
	der, err := ocspRequest(w, r)
	if err != nil {
		return nil, errMalformed
	}
	req, err := ocsp.ParseRequest(der)
	if err != nil || req.HashAlgorithm != crypto.SHA1 && req.HashAlgorithm != crypto.SHA256 {
		return nil, errMalformed
	}
	return h.ocspAnswer(r.Context(), req, now)
}

// ocspRequest is the body of a POST, or what stands behind /ocsp/ in a GET: base64, whose signs / + = may be escaped
// or not (RFC 6960, A.1).
func ocspRequest(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if r.Method == http.MethodPost {
		return io.ReadAll(http.MaxBytesReader(w, r.Body, maxOCSPRequest))
	}
	text := strings.TrimLeft(strings.TrimPrefix(r.URL.Path, pathOCSP), "/")
	if len(text) > base64.StdEncoding.EncodedLen(maxOCSPRequest) {
		return nil, errMalformed
	}
	return base64.StdEncoding.DecodeString(text)
}

// asksOCSP says that a request is for serveOCSP. A ServeMux would take a path with // in it, as base64 may have, for
// another.
func asksOCSP(r *http.Request) bool {
	if r.URL.RawQuery != "" || r.URL.ForceQuery {
		return false
	}
	switch r.Method {
	case http.MethodPost:
		return r.URL.Path == pathOCSP || r.URL.Path == pathOCSP+"/"
	case http.MethodGet, http.MethodHead:
		return strings.HasPrefix(r.URL.Path, pathOCSP+"/")
	}
	return false
}
