package main

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os/exec"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// packer compresses an archive as a kernel can unpack it.
type packer func([]byte) ([]byte, error)

func packerFor(name string) (packer, error) {
	for suffix, p := range map[string]packer{".cpio": packNone, ".cpio.gz": packGzip, ".cpio.xz": packXZ, ".cpio.zst": packZstd} {
		if strings.HasSuffix(name, suffix) {
			return p, nil
		}
	}
	return nil, wrong("IMAGE=bin/muster.cpio.xz", "IMAGE=%s: the name ends neither in .cpio nor in .cpio.gz, .cpio.xz or .cpio.zst", name)
}

func packNone(b []byte) ([]byte, error) { return b, nil }

func packGzip(b []byte) ([]byte, error) {
	return packWith(b, func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriterLevel(w, gzip.BestCompression) })
}

// packXZ runs xz, whose archives no library for Go comes near in size. It writes CRC32 checks: the
// kernel's decompressor has no others (Linux, Documentation/staging/xz.rst).
func packXZ(b []byte) ([]byte, error) {
	c := exec.Command("xz", "-9e", "--check=crc32", "--threads=1", "--stdout")
	c.Stdin = bytes.NewReader(b)
	packed, err := c.Output()
	if errors.Is(err, exec.ErrNotFound) {
		return nil, errors.New("xz is not installed\nhint: install xz-utils, or write .cpio.zst")
	}
	return packed, err
}

func packZstd(b []byte) ([]byte, error) {
	return packWith(b, func(w io.Writer) (io.WriteCloser, error) {
		return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1))
	})
}

func packWith(b []byte, open func(io.Writer) (io.WriteCloser, error)) ([]byte, error) {
	var packed bytes.Buffer
	w, err := open(&packed)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(b); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return packed.Bytes(), nil
}
