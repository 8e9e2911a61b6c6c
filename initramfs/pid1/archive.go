package pid1

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/u-root/u-root/pkg/cpio"
	"github.com/u-root/u-root/pkg/mount"
	"github.com/u-root/u-root/pkg/upath"
	"golang.org/x/sys/unix"
)

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
	if err := fill(newRoot, archive); err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	return mount.Unmount("/image", false, true)
}

// fill creates what is in a newc archive below root.
func fill(root string, archive io.ReaderAt) error {
	first := map[inode]string{}
	return cpio.ForEachRecord(cpio.Newc.Reader(archive), func(r cpio.Record) error {
		if r.Mode&unix.S_IFMT == unix.S_IFREG && r.NLink > 1 {
			if done, err := hardLink(root, r, first); done || err != nil {
				return err
			}
		}
		return cpio.CreateFileInRoot(r, root, true)
	})
}

// inode is what the names of one file have in common.
type inode struct{ major, minor, ino uint64 }

// hardLink gives a file that has its first name another one. There may be data with any of the names; GNU cpio
// and Linux's gen_init_cpio write them with the last. As in the kernel's own reader (init/initramfs.c), data that
// come with another name go into the file that is there: that is left to do where it is not done.
func hardLink(root string, r cpio.Record, first map[inode]string) (done bool, err error) {
	name, err := upath.SafeFilepathJoin(root, r.Name)
	if err != nil {
		return false, nil // left out, like every file outside
	}
	file := inode{r.Major, r.Minor, r.Ino}
	old, ok := first[file]
	if !ok || old == name {
		first[file] = name
		return false, nil
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return false, err
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return r.FileSize == 0, os.Link(old, name)
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
