package main

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/u-root/gobusybox/src/pkg/golang"
	"github.com/u-root/mkuimage/cpio"
	"github.com/u-root/mkuimage/uimage"
	"github.com/u-root/uio/llog"

	"muster/agent"
	"muster/initramfs/modules/choose"
	"muster/internal/durable"
)

// recipe is what the image is to be made of.
type recipe struct {
	out, kernel, firmware, ca, head string
	modules, files                  []string
	version                         string
	committed                       int64
	pack                            packer
	chosen                          string // what a person is told of the modules
}

// check refuses what could only fail on the node.
func (r *recipe) check() (err error) {
	if r.pack, err = packerFor(r.out); err != nil {
		return err
	}
	if len(r.modules) == 0 {
		r.modules = append(choose.Default[:len(choose.Default):len(choose.Default)], "root")
	}
	if err := r.settings(); err != nil {
		return err
	}
	if strings.ContainsAny(r.version, " '\"") {
		return fmt.Errorf("-version %q: the linker takes no spaces and quotes", r.version)
	}
	for _, f := range r.files {
		if from, to, ok := strings.Cut(f, ":"); !ok || from == "" || to == "" {
			return fmt.Errorf("-file %s: not FROM:TO", f)
		}
	}
	return nil
}

// settings asks the agent whether it will take what the image says of heads and pin.
func (r *recipe) settings() error {
	c := agent.Config{Options: agent.Options{Head: r.head}, File: os.DevNull, Cmdline: os.DevNull}
	if strings.HasPrefix(r.ca, "sha256:") {
		c.CA = r.ca
	}
	_, err := agent.New(c)
	return err
}

// build makes the image: u-root's builder compiles /init, as small as gobusybox's flags make it, and
// lays the archive out.
func (r *recipe) build(stderr io.Writer) error {
	records, err := r.records(stderr)
	if err != nil {
		return err
	}
	base, err := cpio.ArchiveFromRecords(records)
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "mkinitramfs")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	archive := filepath.Join(tmp, "image.cpio")
	// The head speaks HTTP/1.1 alone. -a=false is for Go's build cache, which knows flags and content.
	err = uimage.Create(llog.New(slog.LevelWarn, llog.WritePrintf(stderr)),
		uimage.WithReplaceEnv(golang.Default(golang.DisableCGO(), golang.WithBuildTag("nethttpomithttp2"))),
		uimage.WithBaseArchive(base),
		uimage.WithTempDir(tmp),
		uimage.WithBinaryCommandsOpts(&golang.BuildOpts{ExtraArgs: []string{
			"-a=false", "-buildvcs=false", fmt.Sprintf("-ldflags=-s -w -buildid= -X main.version=%s -X main.committed=%d", r.version, r.committed),
		}}, "./cmd/init"),
		uimage.WithInit("init"),
		uimage.WithCPIOOutput(archive),
	)
	if err != nil {
		return err
	}
	return r.write(archive, stderr)
}

func (r *recipe) write(archive string, stderr io.Writer) error {
	plain, err := os.ReadFile(archive)
	if err != nil {
		return err
	}
	packed, err := r.pack(plain)
	if err != nil {
		return err
	}
	if err := durable.WriteFile(r.out, packed, 0o644); err != nil {
		return err
	}
	fmt.Fprintf(stderr, "%s: %.1f MiB, %s\n", r.out, float64(len(packed))/(1<<20), r.chosen)
	return nil
}

// records are the image's files beside /init.
func (r *recipe) records(stderr io.Writer) ([]cpio.Record, error) {
	records := []cpio.Record{
		cpio.CharDev("dev/console", 0o600, 5, 1),  // the kernel opens it before anything is mounted
		cpio.Symlink("bin/muster-agent", "/init"), // for a site's own program
		cpio.Symlink("sbin/modprobe", "/init"),    // for what the kernel asks for itself
		cpio.StaticFile("etc/initrd-release", "ID=muster\nNAME=\"Muster boot image\"\n", 0o644),
	}
	for _, dir := range []string{"bin", "dev", "etc", "proc", "run", "sbin", "sys", "tmp"} {
		records = append(records, cpio.Directory(dir, 0o755))
	}
	trust, err := r.trust()
	if err != nil {
		return nil, err
	}
	drivers, err := r.drivers(stderr)
	if err != nil {
		return nil, err
	}
	files, err := r.siteFiles()
	if err != nil {
		return nil, err
	}
	return append(append(append(records, trust...), drivers...), files...), nil
}

// trust is what the image says of heads and CA.
func (r *recipe) trust() (records []cpio.Record, err error) {
	var conf strings.Builder
	if r.head != "" {
		fmt.Fprintf(&conf, "head = %q\n", r.head)
	}
	// In agent.toml either wins over the kernel command line, which may come from whoever answers DHCP.
	if strings.HasPrefix(r.ca, "sha256:") {
		fmt.Fprintf(&conf, "ca = %q\n", r.ca)
	} else if r.ca != "" {
		certs, err := certificates(r.ca)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&conf, "ca = %q\n", "/etc/muster/ca.pem")
		records = append(records, cpio.StaticFile("etc/muster/ca.pem", certs, 0o644))
	}
	if conf.Len() > 0 {
		records = append(records, cpio.StaticFile("etc/muster/agent.toml", conf.String(), 0o644))
	}
	if len(records) > 0 {
		records = append(records, cpio.Directory("etc/muster", 0o755))
	}
	return records, nil
}

// certificates are the CA certificates in a PEM file, and nothing else: an image is for all to read.
func certificates(file string) (text string, err error) {
	rest, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if block.Type == "CERTIFICATE" && err == nil && c.IsCA {
			text += string(pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes}))
		}
	}
	if text == "" {
		return "", fmt.Errorf("-ca %s: there is no CA certificate in it", file)
	}
	return text, nil
}

// drivers are the modules that were asked for, with what they need, and the firmware that is at hand.
func (r *recipe) drivers(stderr io.Writer) (records []cpio.Record, err error) {
	if r.kernel == "" {
		r.chosen = "without kernel modules"
		return nil, nil
	}
	tree, err := choose.Open(r.kernel)
	if err != nil {
		return nil, err
	}
	chosen, err := tree.Choose(r.modules...)
	if err != nil {
		return nil, err
	}
	files, err := chosen.Files()
	if err != nil {
		return nil, err
	}
	r.chosen = fmt.Sprintf("%d modules of %s", len(chosen.Modules), filepath.Base(r.kernel))
	for _, f := range files {
		records = append(records, cpio.StaticFile(f.Path, string(f.Content), 0o644))
	}
	if r.firmware == "" {
		return records, nil
	}
	for _, fw := range chosen.Firmware(os.DirFS(r.firmware)) {
		if len(fw.Files) == 0 {
			fmt.Fprintf(stderr, "mkinitramfs: %s may ask for firmware %s, which is not at hand\n", fw.Module, fw.Name)
		}
		for _, name := range fw.Files {
			data, err := os.ReadFile(filepath.Join(r.firmware, name))
			if err != nil {
				return nil, err
			}
			records = append(records, cpio.StaticFile(path.Join("lib/firmware", name), string(data), 0o644))
		}
	}
	return records, nil
}

// siteFiles are the files that the site adds, with their own modes.
func (r *recipe) siteFiles() (records []cpio.Record, err error) {
	for _, f := range r.files {
		from, to, _ := strings.Cut(f, ":")
		info, err := os.Stat(from)
		if err != nil {
			return nil, err
		}
		if !info.Mode().IsRegular() {
			return nil, errors.New("-file " + from + ": not a regular file")
		}
		data, err := os.ReadFile(from)
		if err != nil {
			return nil, err
		}
		records = append(records, cpio.StaticFile(strings.TrimPrefix(path.Clean("/"+to), "/"), string(data), uint64(info.Mode().Perm())))
	}
	return records, nil
}
