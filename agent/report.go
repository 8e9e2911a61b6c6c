package agent

import (
	"context"
	"errors"
	"io/fs"
	"net/url"
	"time"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/sys/unix"

	"muster/agent/internal/tpm"
	"muster/internal/wire"
)

const (
	reportTimeout = 6 * time.Second  // of a report, over all heads
	reportNetwork = 15 * time.Second // for the network to come up before
)

// troubleOf is what a head hears of an error of the TPM: nothing of a person who may not open it.
func troubleOf(err error) wire.Trouble {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return ""
	case errors.Is(err, tpm.ErrTPM12):
		return wire.TPM12
	case errors.Is(err, tpm.ErrAbsent):
		return wire.NoTPM
	case errors.Is(err, tpm.ErrNoTPM):
		return wire.TPMMissing
	case errors.Is(err, unix.EBUSY):
		return wire.TPMBusy
	case tpm.Locked(err):
		return wire.TPMLocked
	}
	return wire.TPMFailed
}

// trouble is what a head is to hear of a run that ended with err; "" for nothing.
func (b *boot) trouble(err error) wire.Trouble {
	var o *Outcome
	switch {
	case errors.As(err, &o):
		return o.trouble
	case err != nil || b.kept == nil:
		return ""
	case errors.Is(b.kept, tpm2.TPMRCNVDefined):
		return wire.NVTaken
	case tpm.Locked(b.kept):
		return wire.NVLocked
	}
	return wire.NVFull
}

// report tells a head what keeps this node from its certificate, where it cannot see that by itself: the
// node may have no TPM, and so nothing to ask with. It is for the administrator's `muster why`, as good
// as can be: one round over the heads, and nothing comes of its failing. Like everything it is sent to
// no head that does not chain to a pinned CA; without a TPM only a person can have pinned one.
func (b *boot) report(ctx context.Context, trouble wire.Trouble) {
	if trouble == "" || len(b.heads) == 0 {
		return
	}
	if b.trust == nil {
		var err error
		if b.trust, err = b.resolveTrust(nil); err != nil {
			return
		}
	}
	if b.trust.tofu {
		return
	}
	if b.awaitNetwork(ctx) != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	c := b.client(nil)
	defer c.close()
	c.hurry = true // each head once
	body := wire.Encode(wire.Report{V: wire.Version, Node: b.name, Hints: hints(b.sys), Code: trouble})
	for _, head := range c.heads {
		if c.tell(ctx, head, body, reportTimeout/time.Duration(len(b.heads))) == nil {
			b.log.Info("told a head, for muster why", "head", head.Host, "code", trouble)
			return
		}
	}
}

// awaitNetwork waits for what a run that ended at once did not wait for.
func (b *boot) awaitNetwork(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, reportNetwork)
	defer cancel()
	return b.online(ctx, nil)
}

// tell sends a report to one head.
func (c *client) tell(ctx context.Context, head *url.URL, body []byte, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	c.heads, c.at = []*url.URL{head}, 0
	return c.call(ctx, wire.PathReport, func() ([]byte, error) { return body, nil }, &wire.Reported{})
}
