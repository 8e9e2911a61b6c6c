package tpm

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

const (
	headerSize  = 10 // tag 2, size 4, response code 4 (part 1, 18.4)
	maxResponse = 4096

	firstPause = 2 * time.Millisecond
	maxPause   = 500 * time.Millisecond
	retryLimit = 60 * time.Second // chips have been seen to test themselves for seconds

	// graceLimit is how long a TPM may take, once the context has ended, to finish the command under
	// way and to flush what was loaded.
	graceLimit = 10 * time.Second
)

// retrier sends one command at a time, and again while the TPM only asks for patience. go-tpm
// knows RC_RETRY alone, gives up after two seconds and then reports an empty answer.
type retrier struct {
	mu      sync.Mutex
	ctx     context.Context // of Open: commands have none of their own in go-tpm's interface
	next    transport.TPM
	startup bool // send TPM2_Startup when the TPM asks for it: once, and never to a device
	pause   func(context.Context, time.Duration) error
}

// Send returns the last response, TPM_RC_RETRY and its like included, when a minute was not enough.
//
// The end of the context keeps a command from being started, and ends no command that the TPM works
// on: its answer may be the handle of a new object, which stays in a TPM without a resource manager
// until it is flushed. So TPM2_FlushContext is sent at any time.
func (r *retrier) Send(command []byte) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ctx, limit := r.ctx, retryLimit
	if isFlush(command) {
		ctx = context.WithoutCancel(ctx)
		if r.ctx.Err() != nil {
			limit = graceLimit
		}
	}
	waited := time.Duration(0)
	for wait := firstPause; ; wait = min(2*wait, maxPause) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		response, rc, err := r.once(command)
		if err != nil {
			return nil, err
		}
		if rc == tpm2.TPMRCInitialize && r.startup {
			r.startup = false
			if err := r.start(); err != nil {
				return nil, err
			}
			continue
		}
		if !patience(rc) || waited >= limit {
			return response, nil
		}
		if err := r.pause(ctx, wait); err != nil {
			return nil, err
		}
		waited += wait
	}
}

func isFlush(command []byte) bool {
	return len(command) >= headerSize && tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])) == tpm2.TPMCCFlushContext
}

func (r *retrier) once(command []byte) ([]byte, tpm2.TPMRC, error) {
	response, err := r.next.Send(command)
	if err != nil {
		return nil, 0, err
	}
	if len(response) < headerSize || int(binary.BigEndian.Uint32(response[2:])) != len(response) {
		return nil, 0, fmt.Errorf("%w: %d bytes", ErrProtocol, len(response))
	}
	switch tag := tpm2.TPMST(binary.BigEndian.Uint16(response)); tag {
	case tpm2.TPMSTNoSessions, tpm2.TPMSTSessions:
	case tpm2.TPMSTRspCommand:
		return nil, 0, ErrTPM12
	default:
		return nil, 0, fmt.Errorf("%w: tag %#04x", ErrProtocol, uint16(tag))
	}
	return response, tpm2.TPMRC(binary.BigEndian.Uint32(response[6:])), nil
}

// start sends TPM2_Startup(CLEAR) (part 3, 9.3), which firmware does for a real TPM.
func (r *retrier) start() error {
	if _, err := (tpm2.Startup{StartupType: tpm2.TPMSUClear}).Execute(r.next); err != nil {
		return failed("tpm2.Startup", 0, err)
	}
	return nil
}

// patience says whether rc asks for the same command again, later (part 2, 6.6.3).
func patience(rc tpm2.TPMRC) bool {
	switch rc {
	case tpm2.TPMRCRetry, tpm2.TPMRCTesting, tpm2.TPMRCYielded, tpm2.TPMRCNVRate:
		return true
	}
	return false
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
