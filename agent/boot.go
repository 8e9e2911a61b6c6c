package agent

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"muster/agent/internal/tpm"
	"muster/internal/journal"
	"muster/internal/wire"
)

// offlineAfter is how long a node that can do without a head waits for one.
const offlineAfter = 15 * time.Second

// boot is one run of the boot flow.
type boot struct {
	*Agent
	tpm   *tpm.Device
	trust *trust
	have  *identity     // from NV, nil for none
	spent time.Duration // of wait, on the lock
	kept  error         // why the certificate is not in NV; nil: it is, or was not to be written

	records  []*identity // all of NV's
	renewing bool        // renew, not run
	newKey   bool
	active   bool // a head has said so of the certificate that this run got
}

// Run is the boot flow, which may be run as often as one likes. It returns the line that says what
// happened.
//
//  1. Read NV, and decide whom to trust.
//  2. With a certificate in NV: show it to a head (one signature by the TPM), or, with no head in
//     reach, do without. Renew it when it is due. Install the files. Done.
//  3. Without, or when the head does not know it any more: make or find the key, prove it, and keep
//     and install what the head signs.
//
// A power cut at any instant leaves a node that gets there the next time: the key is made once and
// is in its place before a head hears of it, and NV always holds a whole record.
//
// What a head cannot see of a run is reported to one; see report.
func (a *Agent) Run(ctx context.Context) (line string, err error) {
	return (&boot{Agent: a}).alone(ctx)
}

// alone runs while no other agent is at work.
func (b *boot) alone(ctx context.Context) (line string, err error) {
	unlock, spent, err := b.lock(ctx)
	if err != nil {
		return "", err
	}
	defer unlock()
	b.spent = spent
	line, err = b.start(ctx)
	b.report(ctx, b.trouble(err))
	return line, err
}

// start opens the TPM, which may be late, for as long as run takes.
func (b *boot) start(ctx context.Context) (string, error) {
	d, err := b.awaitTPM(ctx)
	if err != nil {
		return "", tpmError(err)
	}
	defer d.Close()
	b.tpm = d
	return b.run(ctx)
}

func (b *boot) run(ctx context.Context) (string, error) {
	if err := b.forgetOnce(); err != nil {
		return "", err
	}
	records, err := b.begin()
	if err != nil {
		return "", err
	}
	limit := b.wait - b.spent
	if b.wait == 0 {
		limit = requestTimeout // of the one attempt
	}
	wait, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if b.renewing {
		if records, err = b.toRenew(records); err != nil {
			return "", err
		}
	}
	b.records = records
	for _, id := range records {
		b.have = id
		line, err := b.resume(wait, id)
		if !errors.Is(err, errUseless) {
			return line, err
		}
		b.log.Warn("enrolling again", "node", id.node(), "err", err)
	}
	if b.newKey {
		return "", tryAgain("muster-agent run", "no head takes the certificate that this node has, so that it cannot vouch for another key")
	}
	if len(records) > 0 {
		b.have = records[0] // the newest says which key the head has bound
	}
	return b.enroll(ctx, wait, false)
}

// begin reads NV and decides whom to trust. Records of another CA count as absent. It changes
// nothing, for the commands that look.
func (b *boot) begin() ([]*identity, error) {
	records, err := b.identities(b.tpm)
	if err != nil {
		return nil, tpmError(err)
	}
	if b.renewing && len(b.heads) == 0 { // by hand, on a node whose boot was told the head
		b.heads, _ = parseHeads(b.lastStatus().Head)
	}
	b.trust, err = b.resolveTrust(pinsOf(records))
	return records, err
}

// resume goes on with a certificate from NV. The error is errUseless when enrolling again is the
// remedy.
func (b *boot) resume(ctx context.Context, id *identity) (string, error) {
	if b.named && b.name != id.node() {
		b.log.Warn("the certificate in the TPM is for another name; the head decides names", "asked", b.name, "node", id.node())
	}
	offline := !b.renewing && b.usable(id, nil, b.clock.past(id.leaf)) == nil
	if len(b.heads) == 0 && offline {
		return b.finishOffline(id, errors.New("no head is configured"))
	}
	contact, cancel := ctx, context.CancelFunc(func() {})
	if offline {
		contact, cancel = context.WithTimeout(ctx, offlineAfter)
	}
	defer cancel()
	self, at, err := b.self(contact, id)
	var l *late
	var e *wire.Error
	var k *keyError
	switch {
	case err == nil:
		return b.confirmed(ctx, id, at, self)
	case errors.As(err, &l):
		if offline && errors.Is(l.interrupted, context.DeadlineExceeded) {
			return b.finishOffline(id, l)
		}
		return "", b.lateError(l)
	case stranger(err) != nil && offline:
		// Whoever sits in the head's place must not keep a node from its certificate (I3), and
		// nothing of what follows is on its word.
		b.log.Warn("what answers is not a head of this cluster", "event", journal.Stranger, "err", err)
		return b.finishOffline(id, err)
	case errors.As(err, &e) && e.Code == wire.Revoked:
		// Only a new grant helps, and for that a new key. Ask once whether there is one.
		return b.enroll(ctx, ctx, true)
	case errors.As(err, &e):
		return "", fmt.Errorf("%w: the head answers %v", errUseless, e)
	case errors.As(err, &k):
		return "", fmt.Errorf("%w: its key did not sign: %v", errUseless, k)
	}
	return "", err
}

// finish installs what a head has confirmed.
func (b *boot) finish(ctx context.Context, id *identity, at *contact, self *wire.Self) (string, error) {
	g, err := b.generation(id, at.verified.sent, at.verified.at)
	if err != nil {
		return "", err
	}
	g.status.State, g.status.Head = self.State, at.head
	g.roots = stillTrusted(g.roots, self.CAs)
	if err := b.install(g); err != nil {
		return "", err
	}
	b.acknowledge(ctx, id, self.Ack, g.roots)
	line := fmt.Sprintf("%s: certificate %s until %s, confirmed by %s, storage %s%s", id.node(),
		short(id.serial()), day(id.leaf.NotAfter), at.head, id.storage(), disabledNote(self))
	if b.renewing && !self.RenewAt.IsZero() {
		line += "; to be renewed from " + day(self.RenewAt)
	}
	return line, nil
}

// finishOffline installs from NV and the image alone.
func (b *boot) finishOffline(id *identity, why error) (string, error) {
	g, err := b.generation(id, nil, b.clock.past(id.leaf))
	if err != nil {
		return "", err
	}
	before := b.lastStatus()
	if before.Serial == g.status.Serial {
		g.status.State, g.status.Head = before.State, before.Head
	}
	if err := b.install(g); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s: certificate %s until %s, from the TPM; no head confirmed it (%v)", id.node(),
		short(id.serial()), day(id.leaf.NotAfter), why), nil
}

// generation gathers what the profiles install, and checks once more that it fits together.
func (b *boot) generation(id *identity, sent []*x509.Certificate, at time.Time) (*generation, error) {
	at = later(at, id.leaf.NotBefore)
	chain, err := b.trust.verifyNode(id.leaf, sent, at)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", errUseless, err)
	}
	g := &generation{leaf: id.leaf, key: id.key, roots: b.trust.roots(sent, at)}
	g.intermediates = links(id.leaf, slices.Concat(chain[1:len(chain)-1], sent))
	g.status = Status{
		Node: id.node(), State: "issued", Serial: id.serial(), Expires: &id.leaf.NotAfter,
		Pin: pinFor(chain, g.roots).String(), TPM: b.tpmSpec(), Storage: id.storage(),
	}
	return g, nil
}

func (a *Agent) tpmSpec() string {
	if a.spec == "" {
		return "device:" + a.dev + sharedTPM
	}
	return a.spec
}

// lateError is the outcome of a --wait that is over.
func (b *boot) lateError(l *late) error {
	if errors.Is(l.interrupted, context.Canceled) {
		return l.interrupted
	}
	var e *wire.Error
	if !errors.As(l.because, &e) {
		hint := "see that the network is up and that muster.head= is right"
		if !b.initramfs() { // where nobody can type it
			hint += " ('muster-agent doctor')"
		}
		if mute(l.because) {
			hint = hintMute
		}
		return tryAgain(hint, "no head answered within %v: %v", b.wait, l)
	}
	node := hintName(b.name)
	switch e.Code {
	case wire.NotEnabled:
		if b.name == "" {
			return tryAgain("muster.node=NAME on the kernel command line, or a host name: DHCP may give it (dnsmasq: dhcp-host=MAC,NAME)",
				"this node has no name, and without one it is not enabled on the head (waited %v)", b.wait)
		}
		// Or the name is another TPM's, which the head tells nobody but its administrator.
		return tryAgain(fmt.Sprintf("on the head: muster why %s (if it never was enabled: muster certs enable -i %s)", node, node), "%s is not enabled on the head (waited %v)", node, b.wait)
	case wire.Pending:
		return tryAgain("on the head: muster why "+node, "%s waits on the head for the administrator's word (waited %v)", cmp.Or(b.name, "this node"), b.wait)
	}
	return tryAgain("on the head: muster why "+node, "the head says %v (waited %v)", e, b.wait)
}

// short abbreviates a serial number for people.
func short(serial string) string {
	if len(serial) > 8 {
		return serial[:8] + "…"
	}
	return serial
}

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }
