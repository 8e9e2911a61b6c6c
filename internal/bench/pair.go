package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// roleClock is the argument that makes the bench its own calibrator: a process of its own, so that the
// load generator's garbage collection never works in its thread.
const roleClock = "pair-clock"

// tally is how many pairs were timed, and the CPU time they took in all.
type tally struct{ count, ns int64 }

// servePairs times pairs until in ends, and answers each line with the tally.
func servePairs(in io.Reader, out io.Writer) error {
	var count, ns atomic.Int64
	failed := make(chan error, 1)
	go func() { failed <- timePairs(&count, &ns) }()
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		select {
		case err := <-failed:
			return err
		default:
		}
		// ns first: a pair counted too late costs nothing that is not in the next tally.
		n := ns.Load()
		fmt.Fprintln(out, count.Load(), n)
	}
	return lines.Err()
}

// timePairs does three pairs every 20 ms, on each processor in turn, in this thread's CPU clock.
func timePairs(count, ns *atomic.Int64) error {
	runtime.LockOSThread()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	cpus, err := processors()
	if err != nil {
		return err
	}
	for i := 0; ; i++ {
		var one unix.CPUSet
		one.Set(cpus[i%len(cpus)])
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			return fmt.Errorf("sched_setaffinity: %w", err)
		}
		took, err := timed(func() error { return pairs(key, 3) })
		if err != nil {
			return err
		}
		ns.Add(int64(took))
		count.Add(3)
		time.Sleep(20 * time.Millisecond)
	}
}

func pairs(key *ecdsa.PrivateKey, n int) error {
	digest := sha256.Sum256([]byte("pair"))
	for range n {
		sig, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
		if err != nil {
			return err
		}
		if !ecdsa.VerifyASN1(&key.PublicKey, digest[:], sig) {
			return errors.New("a signature does not verify")
		}
	}
	return nil
}

// timed is the CPU time that this thread spends in do.
func timed(do func() error) (time.Duration, error) {
	var before, after unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &before); err != nil {
		return 0, err
	}
	if err := do(); err != nil {
		return 0, err
	}
	err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &after)
	return time.Duration(after.Nano() - before.Nano()), err
}

func processors() ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("sched_getaffinity: %w", err)
	}
	var cpus []int
	for i := range len(set) * 64 {
		if set.IsSet(i) {
			cpus = append(cpus, i)
		}
	}
	return cpus, nil
}

// pairClock is the calibrator, seen from the bench.
type pairClock struct{ *child }

func startPairs(ctx context.Context) (*pairClock, error) {
	c, err := startChild(ctx, roleClock)
	return &pairClock{c}, err
}

func (p *pairClock) tally() (t tally, err error) {
	if _, err = fmt.Fprintln(p.in); err != nil {
		return t, err
	}
	_, err = fmt.Fscanln(p.out, &t.count, &t.ns)
	return t, err
}

// cost is the CPU time of one pair between two tallies.
func cost(from, to tally) (time.Duration, error) {
	if to.count == from.count {
		return 0, errors.New("the run was too short to time a pair")
	}
	return time.Duration((to.ns - from.ns) / (to.count - from.count)), nil
}

// child is a process of this program in another role. It ends when its standard input does.
type child struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func startChild(ctx context.Context, args ...string) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", args[0], err)
	}
	return &child{cmd, in, bufio.NewReader(out)}, nil
}

func (c *child) stop() {
	c.in.Close()
	c.cmd.Wait()
}
