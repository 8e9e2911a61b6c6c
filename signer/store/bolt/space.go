package bolt

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"muster/signer/store"
)

// spaceAhead is what the file is enlarged by beyond what is needed now, where there is room.
const spaceAhead = 1 << 20

// space is the room that the file system has promised us.
type space struct {
	size        int64 // of the file, all of it allocated
	unsupported bool  // by the file system; then its refusal comes from write(2), see finish
}

// reserve makes sure that the group's pages have room on the disk before bbolt touches the file, so that
// a full disk is a plain refusal: ErrFull, and the same question again for the next group.
func (c *committer) reserve(group []*request) error {
	snap := c.store.snapshot.current
	need := snap.tx.Size() + c.bound(group)
	if need > mapSize {
		return fmt.Errorf("%w: it has reached its largest size, %d bytes", store.ErrFull, mapSize)
	}
	if c.space.unsupported || need <= c.space.size {
		return nil
	}
	err := c.allocate(need + spaceAhead)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		err = c.allocate(need)
	}
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%w: %v", store.ErrFull, err)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
		c.space.unsupported = true
	case err != nil:
		return c.fail(fmt.Errorf("fallocate: %v", err))
	}
	return nil
}

// allocate begins at 0, not at the file's end: a copied file may have holes.
func (c *committer) allocate(size int64) error {
	for {
		err := unix.Fallocate(int(c.store.file.Fd()), 0, 0, size)
		if err == nil {
			c.space.size = size
		}
		if err != unix.EINTR {
			return err
		}
	}
}

// bound is more than bbolt can need for a group: for each operation a path of pages from root to leaf,
// split once, and the value's own pages; and the free list.
func (c *committer) bound(group []*request) int64 {
	const pathPages = 8
	pages := 32
	for _, r := range group {
		pages += pathPages * (len(r.tx.Puts) + len(r.tx.Deletes) + len(r.tx.Events))
		pages += r.tx.Size() / pageSize
	}
	return int64(pages*pageSize + c.store.db.Stats().FreelistInuse)
}
