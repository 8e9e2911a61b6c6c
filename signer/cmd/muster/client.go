package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"time"

	"muster/signer"
)

// mutePatience is how long a daemon may leave a request unanswered. systemd holds the socket: a restart takes
// half of this at most, and a daemon that cannot start never answers.
const mutePatience = 20 * time.Second

var errMute = errors.New("no answer")

// unitHint is for a daemon that should be there.
const unitHint = "journalctl -xeu muster.service says why"

// call asks the daemon for one thing. Items of a listing and progress are handed on as they come.
func call[T any](ctx context.Context, e *env, path string, req any, each func(signer.Frame) error) (*T, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return nil, err
	}
	patience := cmp.Or(e.patience, mutePatience)
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", e.socket)
		},
		ExpectContinueTimeout: 2 * patience,
	}}
	asked, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	hr, err := http.NewRequestWithContext(asked, http.MethodPost, "http://muster"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	// The body waits for somebody to read it: what was given up may lie in systemd's socket, and must not be done when
	// the daemon is back at last.
	hr.Header.Set("Expect", "100-continue")
	late := time.AfterFunc(patience, func() { giveUp(errMute) })
	resp, err := client.Do(hr)
	if !late.Stop() && ctx.Err() == nil {
		return nil, fail(exitUnreachable, unitHint, "no daemon answers at %s within %v", e.socket, patience)
	}
	if ctx.Err() != nil {
		return nil, interrupted()
	}
	if err != nil {
		return nil, unreachable(e.socket, err)
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	for {
		var f signer.Frame
		if err := dec.Decode(&f); err != nil {
			if ctx.Err() != nil {
				return nil, interrupted()
			}
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, fail(exitUnreachable, unitHint, "the daemon's answer broke off: %v", err)
		}
		switch {
		case f.Error != nil:
			return nil, fromHead(f.Error)
		case f.Result != nil:
			result := new(T)
			return result, json.Unmarshal(f.Result, result)
		case each != nil:
			if err := each(f); err != nil {
				return nil, err
			}
		}
	}
}

func interrupted() error {
	return fail(exitInterrupted, "muster certs list shows what took effect", "interrupted")
}

func unreachable(socket string, err error) error {
	var op *net.OpError
	if !errors.As(err, &op) {
		var where *url.Error
		if errors.As(err, &where) {
			err = where.Err
		}
		return fail(exitUnreachable, "--socket PATH, as muster serve has it", "what listens at %s is no muster: %v", socket, err)
	}
	if op.Op == "read" { // systemd has closed the socket of a daemon that cannot start
		return fail(exitUnreachable, unitHint, "no daemon at %s: %v", socket, op.Err)
	}
	hint := "systemctl start muster, or muster serve; --socket PATH if it has another"
	if errors.Is(err, fs.ErrPermission) {
		hint = "run as root or as a member of the group muster"
	}
	return fail(exitUnreachable, hint, "no daemon at %s: %v", socket, op.Err)
}
