package pid1

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"time"

	"github.com/u-root/u-root/pkg/cpio"
	"github.com/u-root/u-root/pkg/mount"
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
	fetchStall = time.Minute     // without a byte
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
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	p := &progress{stall: time.AfterFunc(fetchStall, cancel)}
	defer p.stall.Stop()
	hash := sha256.New()
	err = n.agent.Get(ctx, n.image.String(), io.MultiWriter(f, hash, p))
	if ctx.Err() != nil {
		return 0, &agent.Outcome{Status: agent.StatusTryAgain, Message: fmt.Sprintf("%s: nothing came for %v", n.image, fetchStall)}
	}
	if err != nil {
		return 0, err
	}
	if [32]byte(hash.Sum(nil)) != n.sum {
		os.Remove(imageFile)
		return 0, fmt.Errorf("its SHA-256 is %x, and not the one on the kernel command line", hash.Sum(nil))
	}
	return p.bytes, f.Close()
}

// progress counts what comes, and keeps a transfer alive as long as something does.
type progress struct {
	bytes int64
	stall *time.Timer
}

func (p *progress) Write(b []byte) (int, error) {
	p.bytes += int64(len(b))
	p.stall.Reset(fetchStall)
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

// unpack fills a tmpfs at newRoot from an archive, and drops the archive.
func unpack(f *os.File, zipped bool) error {
	if err := mountTmpfs(newRoot); err != nil {
		return err
	}
	var archive io.ReaderAt = f
	if zipped {
		plain, err := gunzip(f)
		if err != nil {
			return err
		}
		defer plain.Close()
		archive = plain
	}
	err := cpio.ForEachRecord(cpio.Newc.Reader(archive), func(r cpio.Record) error {
		return cpio.CreateFileInRoot(r, newRoot, true)
	})
	if err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	return mount.Unmount("/image", false, true)
}

// gunzip unpacks beside the image: an archive's reader goes back and forth.
func gunzip(f *os.File) (*os.File, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, err
	}
	plain, err := os.OpenFile(imageFile+".cpio", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(plain, z); err != nil {
		return nil, fmt.Errorf("gzip: %w", err)
	}
	return plain, nil
}
