package pid1

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/u-root/u-root/pkg/mount/loop"

	"muster/agent"
)

// imageFile is where an image is kept: in memory, as all of an initramfs is.
const imageFile = "/image/root"

// mountImage fetches the root image over mTLS with the node's certificate, and uses it only when it is
// the one that the kernel command line names by its SHA-256: a squashfs, or a cpio archive (newc) with or
// without gzip.
func (n *node) mountImage() (what string, err error) {
	size, err := n.fetch()
	if err != nil {
		return "", err
	}
	what = fmt.Sprintf("%s (%.1f MiB)", n.image, float64(size)/(1<<20))
	f, err := os.Open(imageFile)
	if err != nil {
		return "", err
	}
	defer f.Close()
	magic := make([]byte, 6)
	if _, err := io.ReadFull(f, magic); err != nil {
		return "", err
	}
	switch {
	case bytes.HasPrefix(magic, []byte("hsqs")):
		return what, n.loop()
	case bytes.HasPrefix(magic, []byte{0x1F, 0x8B}), string(magic) == "070701":
		return what, unpack(f, magic[0] == 0x1F)
	}
	return "", errors.New("the image is neither a squashfs nor a cpio archive")
}

const (
	fetchTries = 5
	fetchPause = 5 * time.Second // at most, and more each time: when all nodes boot at once the server is busy

	// Least of what comes in each window: a seventh of each node's share when a thousand of them are behind one
	// 1 GbE port.
	fetchLeast  = 1 << 20
	fetchWindow = time.Minute
)

// fetch writes the image to imageFile, unless it is not the one that was named.
func (n *node) fetch() (size int64, err error) {
	if err := mountTmpfs("/image"); err != nil {
		return 0, err
	}
	for try := 1; ; try++ {
		size, err = n.fetchOnce()
		if agent.ExitStatus(err) != agent.StatusTryAgain || try == fetchTries {
			return size, err
		}
		n.console.say("%v; trying again", err)
		time.Sleep(rand.N(time.Duration(try) * fetchPause))
	}
}

func (n *node) fetchOnce() (int64, error) {
	f, err := os.OpenFile(imageFile, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	hash := sha256.New()
	get := func(ctx context.Context, w io.Writer) error { return n.agent.Get(ctx, n.image.String(), w) }
	size, err := pace{fetchLeast, fetchWindow}.keep(get, io.MultiWriter(f, hash), func(bytes int64) {
		n.console.say("%s: %d MiB so far", n.image, bytes>>20)
	})
	if errors.Is(err, errSlow) {
		return 0, &agent.Outcome{Status: agent.StatusTryAgain, Message: fmt.Sprintf("%s: less than %d MiB came in %v", n.image, fetchLeast>>20, fetchWindow)}
	}
	if err != nil {
		return 0, err
	}
	if [32]byte(hash.Sum(nil)) != n.sum {
		os.Remove(imageFile)
		return 0, fmt.Errorf("its SHA-256 is %x, and not the one on the kernel command line", hash.Sum(nil))
	}
	return size, f.Close()
}

// pace is how much a transfer must bring in each window. Without one, a server that drips keeps a node for ever.
type pace struct {
	least  int64 // bytes
	window time.Duration
}

var errSlow = errors.New("it comes too slowly")

// keep has get write to w, and breaks it off with errSlow when it falls behind. After each window that it did not,
// say is told how much there is. Size is all that came.
func (p pace) keep(get func(context.Context, io.Writer) error, w io.Writer, say func(bytes int64)) (size int64, err error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	c := &counter{began: make(chan struct{})}
	var watching sync.WaitGroup
	watching.Go(func() {
		if p.watch(ctx, c, say) {
			cancel(errSlow)
		}
	})
	if err = get(ctx, io.MultiWriter(w, c)); err != nil && context.Cause(ctx) == errSlow {
		err = errSlow
	}
	cancel(nil)
	watching.Wait()
	return c.bytes.Load(), err
}

// watch returns that too little came, or that the context has ended.
func (p pace) watch(ctx context.Context, c *counter, say func(bytes int64)) (slow bool) {
	began, before := c.began, int64(0)
	tick := time.NewTicker(p.window)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-began: // until then it may have been waiting for its turn
			began = nil
			tick.Reset(p.window)
		case <-tick.C:
			now := c.bytes.Load()
			if now-before < p.least {
				return true
			}
			before = now
			say(now)
		}
	}
}

// counter counts what is written.
type counter struct {
	bytes atomic.Int64
	once  sync.Once
	began chan struct{} // closed with the first byte
}

func (c *counter) Write(b []byte) (int, error) {
	c.bytes.Add(int64(len(b)))
	c.once.Do(func() { close(c.began) })
	return len(b), nil
}

// loop mounts the squashfs in imageFile. The file stays: its pages are the root from now on.
func (n *node) loop() error {
	if err := n.drivers.load("loop"); err != nil {
		return err
	}
	device, err := loop.FindDevice()
	if err != nil {
		return err
	}
	if err := loop.SetFile(device, imageFile); err != nil {
		return err
	}
	return n.overlay(device, "squashfs")
}
