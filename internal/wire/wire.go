// Package wire holds what crosses the network between node and head: paths, messages, error codes,
// size limits, the transcript that a proof covers, and the object identifiers that certificates
// carry. docs/protocol.md explains the exchange.
//
// Requests are canonical: the head refuses a body that is not, byte for byte, what [Encode] makes of
// its own reading of it. Unknown, repeated, reordered or oddly spelled fields are so refused at once.
package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Version is the protocol version that requests carry in their field v.
const Version = 1

// MaxBody is the size in bytes above which a request body is refused unread, and an answer ignored.
const MaxBody = 16 << 10

// Paths of the node listener (HTTPS).
const (
	PathBundle    = "/v1/bundle"
	PathChallenge = "/v1/challenge"
	PathEnroll    = "/v1/enroll"
	PathSelf      = "/v1/self"
	PathReport    = "/v1/report"
	PathAck       = "/v1/ack"

	PathRenewChallenge = "/v1/renew/challenge"
	PathRenew          = "/v1/renew"
)

// Hints help the head find the record of a node that does not know its name. They never raise a level.
type Hints struct {
	MACs   []string `json:"macs,omitempty"`   // lower-case, colon-separated
	UUID   string   `json:"uuid,omitempty"`   // SMBIOS system UUID
	Serial string   `json:"serial,omitempty"` // SMBIOS system serial number
}

const (
	MaxName  = 253 // bytes of a DNS name
	maxHints = 32  // MACs
)

// CheckName refuses what no node can be called. Messages say what to type about a name that somebody
// sent, so it holds nothing that a shell would take for more than text. "" is no name, and passes.
func CheckName(name string) error {
	if len(name) > MaxName || strings.ContainsFunc(name, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-' || r == '_' || r == '.')
	}) {
		return fmt.Errorf("%.64q is not a node name", name)
	}
	return nil
}

// CheckPeer checks what every request says first: its version, and the name and hints of the peer.
func CheckPeer(version int, node string, hints Hints) error {
	if version != Version {
		return fmt.Errorf("v: %d is not %d", version, Version)
	}
	if err := CheckName(node); err != nil {
		return fmt.Errorf("node: %w", err)
	}
	if len(hints.UUID) > MaxName || len(hints.Serial) > MaxName || len(hints.MACs) > maxHints {
		return errors.New("hints: too long")
	}
	for _, mac := range hints.MACs {
		if len(mac) > MaxName {
			return errors.New("hints: too long")
		}
	}
	return nil
}

// EK is an endorsement key and, optionally, certificates for it.
type EK struct {
	Pub   []byte   `json:"pub"`             // TPMT_PUBLIC, marshalled (TPM 2.0 part 2, 12.2.4)
	Certs [][]byte `json:"certs,omitempty"` // DER
}

// ChallengeRequest is leg 1: POST /v1/challenge.
type ChallengeRequest struct {
	V     int    `json:"v"`
	Node  string `json:"node"` // what the node believes its name is; may be empty
	Hints Hints  `json:"hints"`
	EKs   []EK   `json:"eks"` // in the node's order of preference
	Key   []byte `json:"key"` // TPMT_PUBLIC of the node key
	CSR   []byte `json:"csr"` // PKCS#10 (RFC 2986), DER, signed by the node key
}

// Challenge answers leg 1. Only the TPM that holds both the EK and the node key can turn IDObject
// and EncSecret into the secret (TPM2_ActivateCredential, TPM 2.0 part 3, 12.5).
type Challenge struct {
	Cluster   string `json:"cluster"` // cluster id
	Grant     string `json:"grant"`   // grant id
	Slot      string `json:"slot"`    // the node's name, as the head decided it
	Level     Level  `json:"level"`
	Exp       int64  `json:"exp"`   // Unix seconds
	Epoch     string `json:"epoch"` // names the head's K_epoch
	EK        string `json:"ek"`    // SHA-256 of the chosen EK's SPKI, lower-case hex
	IDObject  []byte `json:"idObject"`
	EncSecret []byte `json:"encSecret"`
	Time      int64  `json:"time"` // the head's clock, Unix seconds
}

// EnrollRequest is leg 2: POST /v1/enroll. EKs holds exactly the chosen EK, without certificates.
type EnrollRequest struct {
	V     int    `json:"v"`
	Node  string `json:"node"`
	Hints Hints  `json:"hints"`
	EKs   []EK   `json:"eks"`
	Key   []byte `json:"key"`
	CSR   []byte `json:"csr"`
	Exp   int64  `json:"exp"`
	Epoch string `json:"epoch"`
	Slot  string `json:"slot"`
	Level Level  `json:"level"`
	EK    string `json:"ek"`
	Proof []byte `json:"proof"` // Proof(secret, transcript)
}

// RenewRequest is POST /v1/renew for the key that the node has. The connection's certificate says for whom
// it is, and the TLS handshake has proven the key. For another key the body is an EnrollRequest that
// answers a challenge of PathRenewChallenge.
type RenewRequest struct {
	V int `json:"v"`
}

// Enrolled answers leg 2, and a renewal.
type Enrolled struct {
	Cert   []byte   `json:"cert"`            // the node certificate, DER
	Chain  [][]byte `json:"chain,omitempty"` // intermediates between Cert and the root, DER
	Bundle string   `json:"bundle"`          // trust bundle, PEM
	State  string   `json:"state"`           // issued or active
	Time   int64    `json:"time"`
}

// Self answers GET /v1/self: the record of the node whose certificate the connection carries.
type Self struct {
	Node    string    `json:"node"`
	Serial  string    `json:"serial"` // lower-case hex
	State   string    `json:"state"`
	Level   Level     `json:"level"`
	Expires time.Time `json:"expires"`
	CAs     []string  `json:"cas"`               // pins of the CAs that are to be trusted now: of those that a node trusts, it drops the others
	Ack     string    `json:"ack,omitempty"`     // pin of a CA that the head wants to hear the node trusts
	RenewAt time.Time `json:"renew_at,omitzero"` // from when on the head renews it; zero: not at all
	Time    int64     `json:"time"`
}

// Acknowledge is POST /v1/ack, over mTLS: the node's files name a CA as trusted now.
type Acknowledge struct {
	V  int    `json:"v"`
	CA string `json:"ca"` // its pin, as Self.Ack has it
}

// Acknowledged answers that.
type Acknowledged struct {
	Time int64 `json:"time"`
}

// Report is POST /v1/report: why a node has no certificate, or cannot use or keep it. It carries no proof, since
// the node may have no TPM.
type Report struct {
	V     int     `json:"v"`
	Node  string  `json:"node"` // as in ChallengeRequest
	Hints Hints   `json:"hints"`
	Code  Trouble `json:"code"`
}

// Reported answers a report, and tells nothing.
type Reported struct{}

// Trouble is one of the closed set of things that go wrong on a node where its head does not see it.
type Trouble string

const (
	NoTPM         Trouble = "no_tpm"      // the firmware shows none: switched off there, or none is fitted
	TPMMissing    Trouble = "tpm_missing" // announced or configured, and not there
	TPM12         Trouble = "tpm12"       // a TPM 1.2
	TPMBusy       Trouble = "tpm_busy"    // another program holds it
	TPMLocked     Trouble = "tpm_locked"  // a password, a lockout or a hierarchy that is switched off
	TPMFailed     Trouble = "tpm_failed"  // whatever else it does not do
	InstallFailed Trouble = "install_failed"
	BadAnswer     Trouble = "bad_answer" // what the head answered makes no sense to the node
	// A node that is well, and fetches its certificate again at each boot:
	NVFull   Trouble = "nv_full"   // the TPM's NV has no room for it
	NVTaken  Trouble = "nv_taken"  // something else is at its places there
	NVLocked Trouble = "nv_locked" // the owner hierarchy has a password, or is switched off
)

// Troubles are all of them.
var Troubles = []Trouble{NoTPM, TPMMissing, TPM12, TPMBusy, TPMLocked, TPMFailed, InstallFailed, BadAnswer, NVFull, NVTaken, NVLocked}

// Known says whether t is one of [Troubles].
func (t Trouble) Known() bool { return slices.Contains(Troubles, t) }

// Level says how much is known of the TPM behind a certificate.
type Level string

const (
	TOFU   Level = "tofu"   // the first TPM seen in the window; it may be software
	Vendor Level = "vendor" // the EK certificate chains to the site's roots: a genuine TPM, but whose?
	Pinned Level = "pinned" // the administrator recorded this EK for this name
)

// Rank orders levels; 0 means that l is none.
func (l Level) Rank() int {
	switch l {
	case TOFU:
		return 1
	case Vendor:
		return 2
	case Pinned:
		return 3
	}
	return 0
}

// Code is one of the closed set of reasons that a peer is told.
type Code string

const (
	NotEnabled     Code = "not_enabled" // also for an unknown node, and for a window that is over
	Pending        Code = "pending"
	Refused        Code = "refused"
	Revoked        Code = "revoked"
	KeyBarred      Code = "key_barred"
	StaleChallenge Code = "stale_challenge"
	Busy           Code = "busy"
	BadRequest     Code = "bad_request"
	TooLarge       Code = "too_large"
	NotFound       Code = "not_found"
)

// Status maps a code to its HTTP status, here and nowhere else.
func (c Code) Status() int {
	switch c {
	case NotEnabled, Pending, Refused, Revoked, KeyBarred:
		return http.StatusForbidden
	case StaleChallenge:
		return http.StatusConflict
	case Busy:
		return http.StatusServiceUnavailable
	case TooLarge:
		return http.StatusRequestEntityTooLarge
	case NotFound:
		return http.StatusNotFound
	}
	return http.StatusBadRequest
}

// Error is the body of every answer that is not a 2xx.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
}

func (e *Error) Error() string { return string(e.Code) + ": " + e.Message }

// Encode returns the one form in which a request is sent. It panics on a type that JSON cannot hold.
func Encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("wire: " + err.Error())
	}
	return b
}

// Decode reads a request body into v, a pointer to a zero request, and refuses what Encode would
// not have written.
func Decode(body []byte, v any) error {
	if err := json.Unmarshal(body, v); err != nil {
		return errors.New("body is not a request of this kind")
	}
	if !bytes.Equal(Encode(v), body) {
		return errors.New("body is not in canonical form")
	}
	return nil
}
