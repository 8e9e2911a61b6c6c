package signer

import (
	"errors"
	"fmt"

	"muster/internal/wire"
	"muster/signer/store"
)

// refusal is why a request was not granted. A peer that has proved nothing is told only its code,
// and of all codes but the ones about form only not_enabled; reason is for `muster why`.
type refusal struct {
	code   wire.Code
	reason reason
	detail string
	cause  error // of the store, where that is why
}

func (r *refusal) Error() string { return fmt.Sprintf("%s: %s", r.reason, r.detail) }

// reason is one of a closed set, so that `muster why` has a sentence and a remedy for each.
type reason string

const (
	whyForm        reason = "form"
	whyUnknown     reason = "unknown"       // no record of that name
	whyNotEnabled  reason = "not-enabled"   // never, or the grant is used
	whyWindowOver  reason = "window-over"   // enabled, but too late
	whyDisabled    reason = "disabled"      // by the administrator
	whyRevoked     reason = "revoked"       // by the administrator
	whyOtherTPM    reason = "other-tpm"     // the name is bound to another EK
	whyOtherKey    reason = "other-key"     // the grant led to another key
	whyEKTaken     reason = "ek-taken"      // the EK is bound to another name
	whyKeyTaken    reason = "key-taken"     // the node key is bound to another name
	whyCAEnded     reason = "ca-ended"      // the certificate\'s CA was ended with all that it signed
	whyKeyBarred   reason = "key-barred"    // the node key was revoked
	whyLevel       reason = "level"         // proven, but not as much as the grant asks for
	whyStale       reason = "stale"         // an answer to no challenge that is still good
	whyNotOnRecord reason = "not-on-record" // a certificate that is not, or no more, the record's
	whyStore       reason = "store"         // the store cannot be read or written
	whyClock       reason = "clock"         // the head's clock is before its floor, or too far after it
	whySigning     reason = "signing"       // the CA cannot sign
	whyOverload    reason = "overload"
	whyTooLarge    reason = "too-large"
	whyCSR         reason = "csr"
	whyExpired     reason = "expired"     // the certificate is over
	whyOtherBoard  reason = "other-board" // the MAC or UUID on record for the name is another
	whyAmbiguous   reason = "ambiguous"   // MACs and UUID lead to several names
	whyTooSoon     reason = "too-soon"    // a node that changes its key too often
	whyRollback    reason = "rollback"    // the store is older than its witness
	whyPassword    reason = "password"    // an EST client's, which is wrong or none
	whyClass       reason = "class"       // a node's certificate where an EST client's belongs, or the other way round
	whyTooOften    reason = "too-often"   // an EST client renews again and again, or somebody guesses its password
	whyPending     reason = "pending"     // proven, and waits for approval
	whyAnother     reason = "another"     // proven, while another TPM waits or was learned
	whyLearned     reason = "learned"     // proven, and the grant only learns
	whyReplaced    reason = "replaced"    // the board that was taken out of this node
	whyVendor      reason = "vendor"      // no certificate of the EK leads to a root of ek-roots
)

func refuse(code wire.Code, why reason, format string, args ...any) *refusal {
	return &refusal{code: code, reason: why, detail: fmt.Sprintf(format, args...)}
}

func storeRefusal(err error) *refusal {
	return &refusal{code: wire.Busy, reason: whyStore, detail: err.Error(), cause: err}
}

// conflict says that the record changed between reading and writing.
func (r *refusal) conflict() bool { return errors.Is(r.cause, store.ErrConflict) }

// unproven is what may be told to a peer that has proved nothing.
func (r *refusal) unproven() wire.Code {
	switch r.code {
	case wire.Refused, wire.Revoked, wire.Pending, wire.KeyBarred:
		return wire.NotEnabled
	}
	return r.code
}

// message is the text beside a code. It says no more than the code does.
func message(c wire.Code) string {
	switch c {
	case wire.NotEnabled:
		return "this node may not enrol now"
	case wire.Pending:
		return "waiting for the administrator's approval"
	case wire.Refused:
		return "ask the administrator, who can see why"
	case wire.Revoked:
		return "revoked by the administrator"
	case wire.KeyBarred:
		return "this key may not be used again"
	case wire.StaleChallenge:
		return "the challenge is no longer good; ask for a new one"
	case wire.Busy:
		return "try again later"
	case wire.TooLarge:
		return "body is too large"
	case wire.NotFound:
		return "no such path or method"
	}
	return "bad request"
}
