package signer

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"muster/internal/wire"
	"muster/signer/store"
)

// Keys of the store. A name, an EK and a node key each belong to at most one another; the bindings
// stand under keys of their own so that one transaction can guard all three.
const (
	keyCluster   = "cluster"
	keyCAs       = "ca"
	keyEpoch     = "epoch"
	keySteady    = "steady" // when a head last found its clock steady
	prefixSlot   = "slot/"
	prefixEK     = "ek/"     // + fingerprint of an EK -> node name
	prefixKey    = "key/"    // + fingerprint of a node key -> node name
	prefixCert   = "cert/"   // + serial of a certificate that was signed -> certRecord
	prefixEnded  = "ended/"  // + serial -> why and when a certificate ended before its time
	prefixBarred = "barred/" // + fingerprint of a key that was revoked -> the name that had it
	prefixCRL    = "crl/"    // + id of a CA -> crlRecord
	// + serial -> a certificate of our CA that was shown and is not on record
	prefixUnknown = "unknown/"

	prefixSAN = "san/" // + a name or an address, in one spelling -> holders

	keyInventory = "inventory" // when node names were imported first: from then on enable makes none by itself
	prefixMAC    = "mac/"      // + MAC -> node name
	prefixUUID   = "uuid/"     // + system UUID -> node name
)

// class is what a certificate is for. Nodes and hosts have slots, so that no two of them have one name.
type class string

const (
	classNode class = "node"
	classHost class = "host" // an EST client, whose key may be anywhere
	classHead class = "head"
	classOCSP class = "ocsp" // signs OCSP answers for a CA
)

// Software is the level of a certificate that says nothing of where its key is. No grant of a node can be had at it.
const Software wire.Level = "software"

// certRecord is known of each certificate from the moment it is signed until it is long over: a serial number
// that is not here was not signed by this cluster, or by a past of it that the store has lost.
type certRecord struct {
	Class    class     `json:"class"`
	Name     string    `json:"name"`
	CA       string    `json:"ca"`            // id of the CA that signed it
	Key      string    `json:"key,omitempty"` // a node's: fingerprint
	NotAfter time.Time `json:"not_after"`
	DER      []byte    `json:"der,omitempty"` // where no other record has it
}

// cluster is what `muster init` decided, once.
type cluster struct {
	ID          string    `json:"id"`
	Name        string    `json:"name"`
	TrustDomain string    `json:"trust_domain"`
	Hosts       []string  `json:"hosts"` // names and addresses for the head's own certificates
	Made        time.Time `json:"made"`
}

// State is where a slot is in its life, as `muster certs list` shows it.
type State string

const (
	StateDisabled State = "disabled" // may not enrol; a certificate it has lives on, but is not renewed
	StateOpen     State = "open"     // may enrol until the window closes
	StatePending  State = "pending"  // a proven TPM waits for the administrator's approval
	StateIssued   State = "issued"   // certificate given, not yet seen in use
	StateActive   State = "active"   // certificate seen in use
	StateExpired  State = "expired"  // over, or ended with its CA
	StateRevoked  State = "revoked"
	StateUnknown  State = "unknown" // no slot's: a certificate that is not on record, see quarantine
)

// States are all states, in the order of a slot's life, and what has none.
var States = []State{StateDisabled, StateOpen, StatePending, StateIssued, StateActive, StateExpired, StateRevoked, StateUnknown}

// slot is the administrator's record of one node, or of one EST client, and the only source of names (I4).
type slot struct {
	Node     string   `json:"node"`
	Host     bool     `json:"host,omitempty"`   // of class host
	EK       string   `json:"ek,omitempty"`     // fingerprint; bound by enrolment, or pinned
	Pinned   bool     `json:"pinned,omitempty"` // the administrator recorded EK
	Disabled bool     `json:"disabled,omitempty"`
	Revoked  bool     `json:"revoked,omitempty"` // until `enable --again`
	DNS      []string `json:"dns,omitempty"`
	IP       []string `json:"ip,omitempty"`
	Held     []string `json:"held,omitempty"` // an EST client's: keys of prefixSAN
	// Life of the next certificate, and at how many percent of it left a certificate is renewed; 0: the default.
	Life      time.Duration `json:"life,omitempty"`
	RefreshAt int           `json:"refresh_at,omitempty"`
	Rekeyed   time.Time     `json:"rekeyed,omitzero"` // when the node last changed its key by itself
	Grant     *grant        `json:"grant,omitempty"`
	Cert      *issued       `json:"cert,omitempty"`
	Acked     string        `json:"acked,omitempty"` // id of the newest CA that the node says it trusts
	// Old is the certificate that Cert replaces; it lives until Cert is first used, so that a
	// lost answer never locks a node out.
	Old *issued `json:"old,omitempty"`

	// What the inventory has beside names. MAC and UUID lead a machine to its record, and prove nothing.
	MAC    []string `json:"mac,omitempty"`
	UUID   string   `json:"uuid,omitempty"`
	Groups []string `json:"groups,omitempty"`
	// Pending and Learned are TPMs that proved themselves and got nothing for it; see approve.go.
	Pending  *Candidate `json:"pending,omitempty"`
	Learned  *Candidate `json:"learned,omitempty"`
	Replaced []string   `json:"replaced,omitempty"` // EKs of boards that were taken out, the newest last: another name may have them, not this one
}

// grant is one `certs enable`: it leads to certificates for at most one key (I1).
type grant struct {
	ID    string     `json:"id"`
	Until time.Time  `json:"until"`
	Level wire.Level `json:"level"` // at least
	Used  bool       `json:"used,omitempty"`
	// Of an EST client: the hash of the password, and the fingerprint of the key that the grant led to.
	Password string `json:"password,omitempty"`
	Key      string `json:"key,omitempty"`
	// A TPM that is not on record yet gets nothing by this grant: with Approve it waits, with Learn its EK
	// is noted.
	Approve bool `json:"approve,omitempty"`
	Learn   bool `json:"learn,omitempty"`
}

// issued is a certificate in the record.
type issued struct {
	DER       []byte     `json:"der"`
	Serial    string     `json:"serial"` // lower-case hex
	CA        string     `json:"ca"`     // id of the CA that signed it
	Key       string     `json:"key"`    // fingerprint of the node key
	Level     wire.Level `json:"level"`
	Issued    time.Time  `json:"issued"`
	NotAfter  time.Time  `json:"not_after"`
	Activated bool       `json:"activated,omitempty"` // seen in use over mTLS

	ended time.Time // when its CA did, and it with that; zero: it did not. See Head.readSlot
	burnt bool      // nothing leads from that CA to the one that signs
}

// readSlot is a slot for people, who are to see at once that a CA was ended.
func (h *Head) readSlot(item store.Item) (*slot, error) {
	s, err := parse[slot](item)
	if err == nil && s.Cert != nil {
		s.Cert.ended, s.Cert.burnt = h.ring.Load().endOf(s.Cert)
	}
	return s, err
}

// inDate says whether c is not over, by its dates or with its CA.
func (c *issued) inDate(now time.Time) bool {
	return c != nil && c.ended.IsZero() && now.Before(c.NotAfter)
}

// over is from when on c is, or was, no good.
func (c *issued) over() time.Time {
	if c.ended.IsZero() {
		return c.NotAfter
	}
	return earlier(c.ended, c.NotAfter)
}

func (s *slot) class() class {
	if s.Host {
		return classHost
	}
	return classNode
}

// open says whether a certificate can be had by the grant, or a TPM be learned.
func (s *slot) open(now time.Time) bool {
	return !s.Revoked && !s.Disabled && s.Grant != nil && !s.Grant.Used && !s.knows() && now.Before(s.Grant.Until)
}

// knows says that the grant is to learn a TPM, and that one is on record by now: by an import, say.
func (s *slot) knows() bool { return s.Grant.Learn && s.EK != "" }

func (s *slot) state(now time.Time) State {
	switch {
	case s.Revoked:
		return StateRevoked
	case s.Disabled:
		return StateDisabled
	case s.Cert.inDate(now) && s.Cert.Activated:
		return StateActive
	case s.Cert.inDate(now):
		return StateIssued
	case s.Pending != nil && s.waits():
		return StatePending
	case s.open(now):
		return StateOpen
	case s.Cert != nil:
		return StateExpired
	}
	return StateDisabled
}

// level is what an EK comes to with this record: the administrator's word is above all that was proven, which
// is vendor or tofu.
func (s *slot) level(ek string, proven wire.Level) wire.Level {
	switch {
	case s.Pinned && s.EK == ek:
		return wire.Pinned
	case proven == wire.Vendor:
		return wire.Vendor
	}
	return wire.TOFU
}

// take makes ek the slot's. Nobody waits for the name any more.
func (s *slot) take(ek string, pinned bool) {
	s.EK, s.Pinned, s.Pending, s.Learned = ek, pinned, nil, nil
	if slices.Contains(s.Replaced, ek) {
		s.Replaced = minus(s.Replaced, []string{ek})
	}
}

// grantID is the id that a challenge binds; empty when the slot never had a grant.
func (s *slot) grantID() string {
	if s.Grant == nil {
		return ""
	}
	return s.Grant.ID
}

func put(key string, v any) store.Put {
	b, err := json.Marshal(v)
	if err != nil {
		panic("signer: " + err.Error())
	}
	return store.Put{Key: key, Value: b}
}

func parse[T any](item store.Item) (*T, error) {
	if item.Revision == 0 {
		return nil, adminError(KindNone, "do it again", "record %s was removed meanwhile", item.Key)
	}
	v := new(T)
	if err := json.Unmarshal(item.Value, v); err != nil {
		return nil, fmt.Errorf("record %s: %w", item.Key, store.ErrDamaged)
	}
	return v, nil
}

func event(now time.Time, kind, node string, fields map[string]string) store.Event {
	return store.Event{Time: now.UTC(), Kind: kind, Node: node, Fields: fields}
}
