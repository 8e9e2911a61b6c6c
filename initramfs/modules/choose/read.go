package choose

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// suffixes are the ends of the names of module files.
var suffixes = []string{".ko", ".ko.gz", ".ko.xz", ".ko.zst"}

func isModule(file string) bool {
	return slices.ContainsFunc(suffixes, func(s string) bool { return strings.HasSuffix(file, s) })
}

// plainPath is the path of a module's file that is not compressed.
func plainPath(path string) string {
	return path[:strings.LastIndex(path, ".ko")] + ".ko"
}

// read reads a module's file, decompressed as its name says.
func read(file string) ([]byte, error) {
	b, err := os.ReadFile(file)
	if err != nil || strings.HasSuffix(file, ".ko") {
		return b, err
	}
	plain, err := decompress(file, b)
	if err != nil {
		return nil, fmt.Errorf("%s: %v", file, err)
	}
	return plain, nil
}

func decompress(name string, b []byte) ([]byte, error) {
	var r io.Reader
	var err error
	switch name[strings.LastIndex(name, "."):] {
	case ".gz":
		r, err = gzip.NewReader(bytes.NewReader(b))
	case ".xz":
		r, err = xz.NewReader(bytes.NewReader(b))
	case ".zst":
		var d *zstd.Decoder
		d, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		defer d.Close()
		return d.DecodeAll(b, nil)
	}
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}
