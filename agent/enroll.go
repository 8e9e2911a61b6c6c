package agent

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/go-tpm/tpm2"

	"muster/agent/internal/tpm"
	"muster/internal/template"
	"muster/internal/wire"
)

// enroll gets a certificate for the node's key. When the head has another key on record, each that the TPM has of ours
// is tried, and those that it refused go when one has a certificate in use. A key that was barred with a revocation is
// replaced by one in the other slot; a barred key may be there too, and then its place is used.
//
// With revoked the head has just said that the certificate is: unless it has been enabled again
// since, there is nothing to wait for.
func (b *boot) enroll(ctx, wait context.Context, revoked bool) (string, error) {
	key, err := b.nodeKey()
	if err != nil {
		return "", tpmError(err)
	}
	var tried []*tpm.Key
	var refusal error
	for first, barred := key, 0; ; {
		line, err := b.enrollKey(ctx, wait, key, revoked)
		tried = append(tried, key)
		switch code := code(err); {
		case err == nil && refusal != nil:
			b.log.Info("of the keys in the TPM the head has another one on record; using that", "slot", key.Slot())
			if b.active {
				b.evict(tried[:len(tried)-1])
			}
		case code == wire.Refused, code == wire.KeyBarred && refusal != nil: // a new key would be refused, too
			if code == wire.Refused {
				refusal = err
			}
			if other := b.besides(tried); other != nil {
				key = other
				continue
			}
			err = refusal
		case code == wire.KeyBarred && barred < 2:
			barred++
			b.log.Warn("the key was barred with its revoked certificate; using another", "slot", key.Slot())
			if key, err = b.anotherKey(first, key); err != nil {
				return "", tpmError(err)
			}
			continue
		}
		return line, b.enrollError(err, revoked)
	}
}

// evict makes room of keys that the head refused.
func (b *boot) evict(refused []*tpm.Key) {
	for _, key := range refused {
		if key.Slot() == tpm.PrimarySlot {
			continue
		}
		if err := b.tpm.EvictSlot(b.slots, key.Slot()); err != nil {
			b.log.Warn("a key that the head refused is still in the TPM", "slot", key.Slot(), "err", err)
		}
	}
}

// nodeKey prefers the key that the certificate in NV is for, of whatever algorithm: the head has bound that one.
func (b *boot) nodeKey() (*tpm.Key, error) {
	if b.have != nil {
		pub := b.have.leaf.PublicKey
		key, err := b.keyInSlot(b.tpm, pub)
		if key == nil && err == nil && b.have.key.Slot() == tpm.PrimarySlot {
			key, _ = b.tpm.PrimaryKey(b.have.key.Algorithm(), pub)
		}
		if key != nil || err != nil {
			return key, err
		}
	}
	key, _, err := b.tpm.NodeKey(b.slots, b.alg)
	return key, err
}

// anotherKey returns a key besides first. When that one is barred as well, it makes room for a new one;
// the deterministic primary takes no room, so that it is the first key that goes then.
func (b *boot) anotherKey(first, barred *tpm.Key) (*tpm.Key, error) {
	keep := first
	if barred != first {
		gone := barred
		if barred.Slot() == tpm.PrimarySlot {
			gone, keep = first, barred
		}
		if err := b.tpm.EvictSlot(b.slots, gone.Slot()); err != nil {
			return nil, err
		}
	}
	key, _, err := b.tpm.OtherKey(b.slots, b.alg, keep)
	return key, err
}

func samePublic(key *tpm.Key, pub crypto.PublicKey) bool {
	k, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(pub)
}

// enrollKey is the enrolment of one key.
//
//  1. Reach a head. The CSR is the key's first signature, made when the head has proved itself, and
//     before the EK is loaded: a resource manager swaps what is loaded at each command.
//  2. Ask for a challenge.
//  3. Check that the challenge answers what was asked, and open it in the TPM.
//  4. Send the proof; get the certificate, and check that too.
//  5. Keep it in NV, install it.
//  6. Use it once: that closes the grant.
func (b *boot) enrollKey(ctx, wait context.Context, key *tpm.Key, revoked bool) (string, error) {
	c := b.client(nil)
	defer c.close()
	e := b.enrollment(c, key)
	if revoked {
		e.once = []wire.Code{wire.NotEnabled, wire.Pending}
	}
	id, sent, err := e.prove(wait)
	if err != nil {
		return "", err
	}
	return b.use(ctx, e, id, sent)
}

// firstUse installs the files and then shows the certificate to a head. The files stand when no
// head can be told: the next boot tells it.
func (b *boot) firstUse(ctx context.Context, e *enrollment, id *identity, sent []*x509.Certificate) (string, error) {
	v, head := e.client.verified(), e.client.head().String()
	g, err := b.generation(id, sent, v.at)
	if err != nil {
		return "", err
	}
	g.status.Head = head
	if err := b.install(g); err != nil {
		return "", err
	}
	if e.level != "" {
		head += ", level " + string(e.level)
	}
	line := fmt.Sprintf("%s: %s %s, certificate %s until %s, storage %s", id.node(), e.did, head,
		short(id.serial()), day(id.leaf.NotAfter), id.storage())
	soon, cancel := context.WithTimeout(ctx, offlineAfter)
	defer cancel()
	self, at, err := b.self(soon, id)
	var l *late
	switch {
	case errors.As(err, &l) && ctx.Err() == nil, stranger(err) != nil:
		return line + "; no head could be told that it is in use: " + err.Error(), nil
	case err != nil:
		return "", err
	}
	if e.again && due(self) {
		return b.confirmed(ctx, id, at, self)
	}
	b.active = self.State == stateActive
	g.status.State, g.status.Head = self.State, at.head
	g.roots = stillTrusted(g.roots, self.CAs)
	if err := b.install(g); err != nil {
		return "", err
	}
	b.acknowledge(ctx, id, self.Ack, g.roots)
	return line + disabledNote(self), nil
}

// enrollment is the state of the two legs.
type enrollment struct {
	*boot
	client *client
	key    *tpm.Key
	eks    []tpm.EK
	csr    func() ([]byte, error)
	once   []wire.Code // codes that end it at once
	level  wire.Level
	again  bool // the certificate was in use before

	purpose string // of the proof
	did     string // what it came to, in the line that says what happened
}

func (b *boot) enrollment(c *client, key *tpm.Key) *enrollment {
	return &enrollment{
		boot: b, client: c, key: key, purpose: wire.PurposeEnroll, did: "enrolled at",
		csr: sync.OnceValues(func() ([]byte, error) {
			return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
		}),
	}
}

// paths are where the two legs go.
func (e *enrollment) paths() (challenge, answer string) {
	if e.purpose == wire.PurposeRenew {
		return wire.PathRenewChallenge, wire.PathRenew
	}
	return wire.PathChallenge, wire.PathEnroll
}

// prove is steps 1 to 4.
func (e *enrollment) prove(ctx context.Context) (id *identity, sent []*x509.Certificate, err error) {
	if err := e.client.reach(ctx); err != nil {
		return nil, nil, err
	}
	if _, err := e.csr(); err != nil {
		return nil, nil, err
	}
	err = e.tpm.WithEKs(true, func(eks []tpm.EK) (err error) {
		e.eks = eks
		id, sent, err = e.run(ctx)
		return err
	})
	return id, sent, err
}

const maxRounds = 20 // of stale challenges; each one cost a head something

func (e *enrollment) run(ctx context.Context) (*identity, []*x509.Certificate, error) {
	for round := 1; ; round++ {
		began := time.Now()
		id, sent, err := e.round(ctx)
		again := code(err) == wire.StaleChallenge || code(err) == wire.NotEnabled && len(e.once) == 0 ||
			errors.Is(err, errActivate)
		if time.Since(began) > time.Minute {
			round = 1 // it waited for approval, with one answer until that was stale
		}
		if !again || round == maxRounds {
			return id, sent, err
		}
		e.log.Info("starting again with another challenge", "err", err)
		select {
		case <-ctx.Done():
			return nil, nil, &late{because: err, interrupted: ctx.Err()}
		case <-time.After((&exchange{c: e.client, last: err}).pause(0, 0, round-1, nil)):
		}
	}
}

// round is one challenge and its answer.
func (e *enrollment) round(ctx context.Context) (*identity, []*x509.Certificate, error) {
	var ch wire.Challenge
	leg1, leg2 := e.paths()
	if err := e.client.call(ctx, leg1, e.claim, &ch, e.once...); err != nil {
		return nil, nil, err
	}
	if err := e.learn(e.client, ch.Time); err != nil {
		return nil, nil, err
	}
	ek, t, err := e.check(&ch)
	if err != nil {
		return nil, nil, badAnswer("node and head must be of releases that understand each other", "the head's challenge makes no sense: %v", err)
	}
	secret, err := e.tpm.Activate(ek, e.key, ch.IDObject, ch.EncSecret)
	if err != nil {
		return nil, nil, activateError(err)
	}
	csr, err := e.csr()
	if err != nil {
		return nil, nil, err
	}
	body := wire.Encode(wire.EnrollRequest{
		V: wire.Version, Node: e.name, Hints: hints(e.sys), EKs: []wire.EK{{Pub: ek.Area}}, Key: e.key.Area(), CSR: csr,
		Exp: ch.Exp, Epoch: ch.Epoch, Slot: ch.Slot, Level: ch.Level, EK: ch.EK, Proof: t.Proof(secret),
	})
	var answer wire.Enrolled
	// Not enabled any more: the answer to the challenge is worth nothing, so that the next thing to
	// ask for is another challenge.
	err = e.client.call(ctx, leg2, func() ([]byte, error) { return body, nil }, &answer, wire.NotEnabled)
	if err != nil {
		return nil, nil, err
	}
	return e.accept(ch.Slot, &answer)
}

// claim is the body of leg 1. Certificates of EKs are dropped, last first, when it would be too large.
func (e *enrollment) claim() ([]byte, error) {
	e.findName() // it may have come since, with another link
	csr, err := e.csr()
	if err != nil {
		return nil, err
	}
	req := wire.ChallengeRequest{V: wire.Version, Node: e.name, Hints: hints(e.sys), Key: e.key.Area(), CSR: csr}
	for _, ek := range e.eks {
		req.EKs = append(req.EKs, wire.EK{Pub: ek.Area, Certs: ek.Certs})
	}
	body := wire.Encode(req)
	for i := len(req.EKs) - 1; i >= 0 && len(body) > wire.MaxBody; i-- {
		req.EKs[i].Certs = nil
		body = wire.Encode(req)
	}
	return body, nil
}

// check finds the EK that a challenge is for, and builds the transcript from what the node itself
// sent and owns: a head that changed any of it gets a proof that fits nothing.
func (e *enrollment) check(ch *wire.Challenge) (*tpm.EK, *wire.Transcript, error) {
	for name, text := range map[string]string{"cluster": ch.Cluster, "grant": ch.Grant, "epoch": ch.Epoch} {
		if len(text) > wire.MaxName || !printable(text) {
			return nil, nil, fmt.Errorf("%s is not printable", name)
		}
	}
	if err := wire.CheckName(ch.Slot); err != nil {
		return nil, nil, fmt.Errorf("slot: %w", err)
	}
	if ch.Slot == "" || ch.Level.Rank() == 0 {
		return nil, nil, errors.New("no slot, or no level")
	}
	i := slices.IndexFunc(e.eks, func(ek tpm.EK) bool { return hex.EncodeToString(ek.Fingerprint[:]) == ch.EK })
	if i < 0 {
		return nil, nil, errors.New("it is for an EK that is not this node's")
	}
	csr, err := e.csr()
	if err != nil {
		return nil, nil, err
	}
	area, err := template.Parse(e.eks[i].Area)
	if err != nil {
		return nil, nil, err
	}
	name, err := tpm2.ObjectName(area)
	if err != nil {
		return nil, nil, err
	}
	e.level = ch.Level
	return &e.eks[i], &wire.Transcript{
		Cluster: ch.Cluster, Purpose: e.purpose, Grant: ch.Grant, Slot: ch.Slot, Exp: ch.Exp, Epoch: ch.Epoch,
		EK: e.eks[i].Fingerprint, EKName: name.Buffer, KeyName: e.key.Name(), CSR: sha256.Sum256(csr), Level: ch.Level,
	}, nil
}

// accept checks the certificate: it is for this key and this name, and from the pinned CA.
func (e *enrollment) accept(node string, answer *wire.Enrolled) (*identity, []*x509.Certificate, error) {
	bad := func(err error) (*identity, []*x509.Certificate, error) {
		return nil, nil, badAnswer("on the head: muster why "+node, "the head's certificate for this node is of no use: %v", err)
	}
	if err := e.learn(e.client, answer.Time); err != nil {
		return nil, nil, err
	}
	leaf, err := x509.ParseCertificate(answer.Cert)
	if err != nil {
		return bad(err)
	}
	v := e.client.verified()
	sent := slices.Clone(v.sent)
	for _, der := range answer.Chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return bad(err)
		}
		sent = append(sent, c)
	}
	if !samePublic(e.key, leaf.PublicKey) {
		return bad(errors.New("it is for another key"))
	}
	if leaf.Subject.CommonName != node {
		return bad(fmt.Errorf("it is for %q, not for %q", leaf.Subject.CommonName, node))
	}
	at := later(e.clock.past(nil), v.at)
	chain, err := e.trust.verifyNode(leaf, sent, at)
	if err != nil {
		return bad(err)
	}
	e.again = answer.State == stateActive
	return &identity{leaf: leaf, key: e.key, pin: pinFor(chain, e.trust.roots(sent, at)), index: -1}, sent, nil
}

// errActivate is a challenge that the TPM cannot open.
var errActivate = errors.New("the challenge is not for this TPM's keys")

func activateError(err error) error {
	if errors.Is(err, tpm2.TPMRCIntegrity) || errors.Is(err, tpm2.TPMRCValue) || errors.Is(err, tpm2.TPMRCSize) {
		return fmt.Errorf("%w: %w", errActivate, err)
	}
	return err
}

// code returns the head's code in err, or "".
func code(err error) wire.Code {
	var e *wire.Error
	var l *late
	if errors.As(err, &l) || !errors.As(err, &e) {
		return ""
	}
	return e.Code
}

// enrollError is the outcome of an enrolment that failed.
func (b *boot) enrollError(err error, revoked bool) error {
	var l *late
	var o *Outcome
	node := hintName(b.name)
	switch {
	case err == nil || errors.As(err, &o):
		return err
	case errors.As(err, &l):
		return b.lateError(l)
	case code(err) == wire.Revoked, revoked && code(err) != "":
		return refused("on the head: muster certs enable --again -i "+node, "this node's certificate is revoked")
	case code(err) == wire.Refused && b.have == nil:
		return refused(fmt.Sprintf("on the head: muster why %s; if the TPM was cleared: muster certs enable -i %s", node, node),
			"identity lost: the head has another key on record for this node than the TPM has now")
	case code(err) == wire.Refused, code(err) == wire.KeyBarred:
		return refused("on the head: muster why "+node, "the head says %v", err)
	case code(err) == wire.BadRequest, code(err) == wire.TooLarge, code(err) == wire.NotFound:
		return badConfig("node and head must be of releases that understand each other", "the head says %v", err)
	case code(err) != "":
		return tryAgain("on the head: muster why "+node, "the head answers %v", err)
	}
	return tpmError(err)
}
