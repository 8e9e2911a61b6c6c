package agent

import (
	"context"
	"crypto/x509"
	"slices"
	"time"

	"muster/internal/wire"
)

// contact is where and how a head was met.
type contact struct {
	head     string // its URL
	verified *verified
}

// stateDisabled is the head's word for a node that may not enrol; a certificate that it has goes on.
const stateDisabled = "disabled"

// disabledNote ends the line of a run whose certificate is all that the head lets the node have.
func disabledNote(self *wire.Self) string {
	if self.State == stateDisabled {
		return ", disabled on the head"
	}
	return ""
}

// self asks a head for the node's record over mTLS. The first use of a certificate closes its grant.
// Every refusal is an answer here: nothing is gained by waiting for another.
func (b *boot) self(ctx context.Context, id *identity) (*wire.Self, *contact, error) {
	c := b.client(b.present(id))
	c.nv, c.content = id.leaf, b.usable(id, nil, b.clock.past(id.leaf)) == nil
	defer c.close()
	var self wire.Self
	err := c.call(ctx, wire.PathSelf, nil, &self, wire.NotEnabled, wire.Pending)
	if err != nil {
		return nil, nil, err
	}
	if err := b.learn(c, self.Time); err != nil {
		return nil, nil, err
	}
	self.State = Clean(self.State)
	return &self, &contact{c.head().String(), c.verified()}, nil
}

// learn takes the time of an answer.
func (b *boot) learn(c *client, unix int64) error {
	if unix == 0 {
		return nil
	}
	v := c.verified()
	err := b.clock.learn(time.Unix(unix, 0), func(at time.Time) error {
		_, err := judge(at, true, b.clock.built, v.leaf)
		return err
	}, b.log)
	if err != nil {
		return b.trust.headError(c.head().Host, err)
	}
	return nil
}

// acknowledge tells a head that this node trusts a CA, when the head wants to hear it and the files that were
// just installed say so. One that hears nothing asks again at the next contact.
func (b *boot) acknowledge(ctx context.Context, id *identity, want string, roots []*x509.Certificate) {
	if want == "" || !slices.ContainsFunc(roots, func(c *x509.Certificate) bool { return pinOf(c).String() == want }) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, offlineAfter)
	defer cancel()
	c := b.client(b.present(id))
	c.nv = id.leaf
	defer c.close()
	body := wire.Encode(wire.Acknowledge{V: wire.Version, CA: want})
	var answer wire.Acknowledged
	if err := c.call(ctx, wire.PathAck, func() ([]byte, error) { return body, nil }, &answer, wire.NotEnabled); err != nil {
		b.log.Warn("no head could be told that this node trusts the next CA", "err", err)
	}
}
