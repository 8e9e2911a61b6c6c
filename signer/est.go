package signer

import (
	"context"
	"crypto/tls"
	"encoding/asn1"
	"encoding/base64"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"

	"github.com/smallstep/pkcs7"

	"muster/internal/wire"
)

// Paths of EST (RFC 7030, 3.2.2).
const (
	pathCACerts        = "/.well-known/est/cacerts"
	pathSimpleEnroll   = "/.well-known/est/simpleenroll"
	pathSimpleReenroll = "/.well-known/est/simplereenroll"
	pathCSRAttrs       = "/.well-known/est/csrattrs"
)

// ESTHandler serves EST (RFC 7030, as RFC 8951 clarifies it) to clients that are no nodes. Its connections must come
// through ESTTLS.
func (h *Head) ESTHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+pathCACerts, h.serveCACerts)
	mux.HandleFunc("GET "+pathCSRAttrs, serveCSRAttrs)
	mux.HandleFunc("POST "+pathSimpleEnroll, h.serveEST(h.simpleEnroll))
	mux.HandleFunc("POST "+pathSimpleReenroll, h.serveEST(h.simpleReenroll))
	return onlyKnown(mux, h.log, func(w http.ResponseWriter) {
		writeLine(w, http.StatusNotFound, "no such path or method")
	})
}

// ESTTLS is NodeTLS, and TLS 1.2 too: some EST clients speak nothing newer. An answer is to be one record, since
// strongSwan 5.9 reads twice and takes what has come by then for all.
func (h *Head) ESTTLS() *tls.Config {
	cfg := h.NodeTLS()
	cfg.MinVersion = tls.VersionTLS12
	cfg.DynamicRecordSizingDisabled = true
	return cfg
}

// serveCACerts is RFC 7030, 4.1.
func (h *Head) serveCACerts(w http.ResponseWriter, _ *http.Request) {
	var der []byte
	for _, root := range h.ring.Load().trusted() {
		der = append(der, root.Raw...)
	}
	writeCertificates(w, "application/pkcs7-mime", der)
}

// csrAttrs asks for a P-256 key and a signature with SHA-256 (RFC 7030, 4.5.2), which is taken as advice.
var csrAttrs = func() []byte {
	type attribute struct {
		Type   asn1.ObjectIdentifier
		Values []asn1.ObjectIdentifier `asn1:"set"`
	}
	der, err := asn1.Marshal(struct {
		Key  attribute
		Hash asn1.ObjectIdentifier
	}{
		attribute{asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}, []asn1.ObjectIdentifier{{1, 2, 840, 10045, 3, 1, 7}}}, // id-ecPublicKey, secp256r1
		asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2},                                                               // ecdsa-with-SHA256
	})
	if err != nil {
		panic("signer: " + err.Error())
	}
	return der
}()

func serveCSRAttrs(w http.ResponseWriter, _ *http.Request) {
	writeBase64(w, "application/csrattrs", csrAttrs)
}

// serveEST answers one kind of enrolment.
func (h *Head) serveEST(enroll func(context.Context, *http.Request, *peer) (*issued, *refusal)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		who := &peer{addr: address(r)}
		cert, no := enroll(r.Context(), r, who)
		if no != nil {
			h.refusedEST(w, r, who, no)
			return
		}
		h.seen.note(who.node, true, sighting{At: h.now(), Addr: who.addr, Proven: true})
		writeCertificates(w, "application/pkcs7-mime; smime-type=certs-only", slices.Concat(cert.DER, slices.Concat(h.issuers(cert)...)))
	}
}

// issuers are the intermediates between a certificate and its root, which clients would not find (RFC 7030, 4.2.3).
func (h *Head) issuers(c *issued) [][]byte {
	ca := h.ring.Load().byID(c.CA)
	if ca == nil || len(ca.chain) == 0 {
		return nil
	}
	above := ca.above()
	return append([][]byte{ca.cert.Raw}, above[:len(above)-1]...)
}

// requested reads the CSR of a request whose sender has proved something.
func requested(r *http.Request) (*csr, *refusal) {
	if r.ContentLength > wire.MaxBody {
		return nil, refuse(wire.TooLarge, whyTooLarge, "a body of %d bytes", r.ContentLength)
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, wire.MaxBody+1))
	if err != nil {
		return nil, refuse(wire.BadRequest, whyForm, "the body was cut short")
	}
	if len(body) > wire.MaxBody {
		return nil, refuse(wire.TooLarge, whyTooLarge, "a body of more than %d bytes", wire.MaxBody)
	}
	c, err := parseCSR(body)
	if err != nil {
		return nil, refuse(wire.BadRequest, whyCSR, "%v", err)
	}
	return c, nil
}

// refusedEST answers in one line of text, and remembers the reason.
func (h *Head) refusedEST(w http.ResponseWriter, r *http.Request, who *peer, no *refusal) {
	code := h.remember(r.Context(), who, no)
	status, text := code.Status(), estMessage(code, no)
	switch {
	case no.reason == whyPassword:
		status = http.StatusUnauthorized
		w.Header().Set("WWW-Authenticate", `Basic realm="EST", charset="UTF-8"`)
	case no.reason == whyTooOften:
		status = http.StatusTooManyRequests
		w.Header().Set("Retry-After", "60")
	case code == wire.Busy:
		w.Header().Set("Retry-After", strconv.Itoa(1+rand.IntN(5)))
	case code == wire.TooLarge, code == wire.BadRequest:
		w.Header().Set("Connection", "close")
	}
	writeLine(w, status, text)
}

// estMessage is what a person at the client reads. It says no more than the peer has earned.
func estMessage(code wire.Code, no *refusal) string {
	switch {
	case no.reason == whyPassword:
		return "name and password are needed, as the administrator gave them"
	case no.reason == whyTooOften, no.reason == whyClass:
		return no.detail
	case no.reason == whyNotOnRecord:
		return "show the certificate that this head gave last"
	case code == wire.BadRequest:
		return no.detail // about form only, which the peer knows
	case code == wire.Refused && no.reason == whyOtherKey:
		return "this password was used with another key; ask the administrator for a new one"
	case code == wire.NotEnabled:
		return "no certificate for this client now; ask the administrator, who can see why"
	}
	return message(code)
}

func writeLine(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	io.WriteString(w, text+"\n")
}

// writeCertificates answers with a certs-only PKCS#7 of concatenated certificates.
func writeCertificates(w http.ResponseWriter, kind string, der []byte) {
	bag, err := pkcs7.DegenerateCertificate(der)
	if err != nil {
		panic("signer: " + err.Error())
	}
	writeBase64(w, kind, bag)
}

// writeBase64 writes one line without an end: strongSwan 5.9 reads nothing else (RFC 8951, 3.1, allows it).
func writeBase64(w http.ResponseWriter, kind string, der []byte) {
	text := base64.StdEncoding.EncodeToString(der)
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Transfer-Encoding", "base64")
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	io.WriteString(w, text)
}
