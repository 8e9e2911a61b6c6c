package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"muster/agent/internal/tpm"
	"muster/internal/wire"
)

// Get fetches a URL over mTLS with the node's certificate and the key in the TPM, once, and copies
// the body to w. The server must chain to the pinned CA and be what the URL says; it need not be a
// head. An answer that is not 2xx is an error with its status line and, where a head gave one, its
// reason; 5xx and a body that breaks off are worth another try.
func (a *Agent) Get(ctx context.Context, address string, w io.Writer) error {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" {
		return badConfig("write https://HOST[:PORT]/PATH", "%q is not an https URL", address)
	}
	return a.withTPM(ctx, func(d *tpm.Device) error {
		b := &boot{Agent: a, tpm: d}
		ids, err := b.begin()
		if err != nil {
			return err
		}
		if b.have, err = a.newest(d, ids); err != nil {
			return err
		}
		return b.get(ctx, u, w)
	})
}

func (b *boot) get(ctx context.Context, u *url.URL, w io.Writer) error {
	if b.trust.tofu {
		return badConfig("muster-agent run", "no CA is pinned yet")
	}
	c := b.client(b.present(b.have))
	c.check = b.trust.verifyServer
	defer c.close()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	if err := b.networkUp(ctx); err != nil {
		return b.getError(u, err)
	}
	resp, err := c.http.RoundTrip(req)
	if err != nil {
		return b.getError(u, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		message := fmt.Sprintf("%s: %s", u, Clean(resp.Status))
		body, _ := io.ReadAll(io.LimitReader(resp.Body, wire.MaxBody))
		if e := ourError(body); e != nil {
			message += ": " + e.Error()
		}
		if resp.StatusCode/100 == 5 {
			return tryAgain("the server is busy or broken: see its log", "%s", message)
		}
		return &Outcome{Status: StatusFailed, Message: message}
	}
	body := &reading{r: resp.Body}
	if _, err = io.Copy(w, body); body.err != nil {
		return b.getError(u, body.err)
	}
	return err
}

// onlineTries is how often a network that is not up yet is asked for; each may take its time.
const onlineTries = 6

// networkUp waits for the network where a run has gone on without one.
func (b *boot) networkUp(ctx context.Context) (err error) {
	for range onlineTries {
		if err = b.online(ctx, nil); err == nil || ctx.Err() != nil {
			return err
		}
	}
	return err
}

// reading keeps a reader's error apart from those of whom it is copied to.
type reading struct {
	r   io.Reader
	err error
}

func (r *reading) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	if err != nil && err != io.EOF {
		r.err = err
	}
	return n, err
}

func (b *boot) getError(u *url.URL, err error) error {
	var k *keyError
	switch {
	case stranger(err) != nil:
		return b.trust.headError(u.Host, err)
	case errors.As(err, &k):
		return tpmError(k.error)
	case errors.Is(err, context.Canceled):
		return err
	}
	return tryAgain("see that the host is up", "%s: %s", u, Clean(err.Error()))
}
