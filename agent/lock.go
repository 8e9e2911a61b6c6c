package agent

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"muster/internal/durable"
)

const (
	// fileLock is held by the agent that is at work. It is empty and stays: nobody who waits for it ever
	// waits for a file that is gone. Only root may open it, so that no user of the node holds a boot up.
	fileLock = runDir + "/.lock"
	lockPoll = 50 * time.Millisecond
)

// lock keeps agents that make keys and write files apart: the initramfs's, the unit's, an administrator's.
// Of two that find no key at the same moment each would make one, and the head refuses the second key.
// The kernel ends the lock with the process, however that ends (flock(2)). It waits as long as --wait
// allows, of which waited is what that took; without --wait it does not wait at all.
//
// Where /run/muster cannot be written there is no lock, and nothing else to be kept apart but the TPM;
// that the files cannot be written is for install to say.
func (a *Agent) lock(ctx context.Context) (release func(), waited time.Duration, err error) {
	none := func() {}
	if a.makeRunDir() != nil {
		return none, 0, nil
	}
	fd, err := unix.Open(a.path(fileLock), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		a.log.Debug("no lock", "err", err)
		return none, 0, nil
	}
	release = func() { unix.Close(fd) }
	start := time.Now()
	for first := true; ; first = false {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		waited = time.Since(start)
		switch {
		case err == nil:
			a.sweep()
			return release, waited, nil
		case !errors.Is(err, unix.EWOULDBLOCK): // a file system without locks
			a.log.Debug("no lock", "err", err)
			return release, 0, nil
		case waited >= a.wait:
			release()
			return nil, 0, tryAgain("'muster-agent doctor' shows what that one may be waiting for, and fuser -v "+a.path(fileLock)+" which it is",
				"another muster-agent is at work on this node (waited %v)", a.wait)
		case first:
			a.log.Info("another muster-agent is at work on this node; waiting for it", "up_to", a.wait)
		}
		select {
		case <-ctx.Done():
			release()
			return nil, 0, ctx.Err()
		case <-time.After(lockPoll):
		}
	}
}

// sweep removes what an agent left that was killed while it wrote a file.
func (a *Agent) sweep() {
	for _, f := range []string{fileCA, fileKey, fileConf, fileChain, fileCert, fileStatus, fileForgotten} {
		if err := durable.Sweep(a.path(f)); err != nil {
			a.log.Warn("cannot remove what an interrupted run left", "err", err)
		}
	}
}
