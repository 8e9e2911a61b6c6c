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
	"slices"
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
	in, out, kernel, firmware, ca, head string
	modules, files                      []string
	version                             string
	committed                           int64
	pack                                packer
	certs                               string // of the CA, PEM
	chosen                              string // what a person is told of the modules
}

// file is where a file is that somebody named.
func (r *recipe) file(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(r.in, name)
}

// check refuses what could only fail on the node.
func (r *recipe) check(stderr io.Writer) (err error) {
	if r.pack, err = packerFor(r.out); err != nil {
		return err
	}
	if err := r.kernelParts(); err != nil {
		return err
	}
	if len(r.modules) == 0 {
		r.modules = append(choose.Default[:len(choose.Default):len(choose.Default)], "root")
	}
	if err := r.settings(); err != nil {
		return err
	}
	if r.ca != "" && !strings.HasPrefix(r.ca, "sha256:") {
		if r.certs, err = r.certificates(); err != nil {
			return err
		}
	}
	if strings.ContainsAny(r.version, " '\"") {
		return fmt.Errorf("-version %q: the linker takes no spaces and quotes", r.version)
	}
	if err := r.checkFiles(); err != nil {
		return err
	}
	var words []string
	if r.head == "" {
		words = append(words, "muster.head=https://HEAD:8443")
	}
	if r.ca == "" {
		words = append(words, "muster.ca=PIN")
	}
	if len(words) > 0 {
		fmt.Fprintf(stderr, "note: what the image does not say, the kernel command line must: %s\n", strings.Join(words, " "))
	}
	return nil
}

const kernelHint = "KERNEL=/lib/modules/RELEASE, with the release of the nodes' kernel: ls /lib/modules"

// kernelParts looks for what KERNEL, MODULES and FIRMWARE name.
func (r *recipe) kernelParts() error {
	for _, part := range []struct{ name, value, hint string }{
		{"KERNEL", r.kernel, kernelHint}, {"FIRMWARE", r.firmware, "FIRMWARE=/lib/firmware"},
	} {
		if part.value == "" {
			continue
		}
		if info, err := os.Stat(r.file(part.value)); err != nil || !info.IsDir() {
			return wrong(part.hint, "%s=%s: there is no such directory", part.name, part.value)
		}
	}
	if r.kernel == "" && len(r.modules) > 0 {
		return wrong(kernelHint, "MODULES=%s is of no use without KERNEL=", strings.Join(r.modules, ","))
	}
	if r.kernel == "" && r.firmware != "" {
		return wrong(kernelHint, "FIRMWARE=%s is of no use without KERNEL=", r.firmware)
	}
	if trees, _ := filepath.Glob(r.file(r.kernel) + "/*/kernel"); r.kernel != "" && len(trees) > 0 {
		return wrong("KERNEL="+filepath.Dir(trees[0]), "KERNEL=%s: kernels' modules are below it, each in a directory of its release", r.kernel)
	}
	return nil
}

// own are the places in an image that are taken in any case. The builder moves an init aside as inito.
var own = []string{"init", "inito", "bin/init", "bin/muster-agent", "sbin/modprobe", "etc/initrd-release", "dev/console"}

const filesHint = "FILES=FROM:TO,…, with another TO"

// checkFiles refuses what is no file, and a place that is taken already.
func (r *recipe) checkFiles() error {
	taken := map[string]string{}
	for _, name := range own {
		taken[name] = "the image's own"
	}
	if r.head != "" || r.ca != "" {
		taken["etc/muster/agent.toml"] = "there by HEAD= or CA="
	}
	if r.ca != "" && !strings.HasPrefix(r.ca, "sha256:") {
		taken["etc/muster/ca.pem"] = "there by CA="
	}
	for _, f := range r.files {
		from, to, ok := strings.Cut(f, ":")
		if !ok || from == "" || strings.Trim(to, "/") == "" {
			return wrong("FILES=FROM:TO,…", "FILES=%s: not FROM:TO", f)
		}
		if info, err := os.Stat(r.file(from)); err != nil || !info.Mode().IsRegular() {
			return wrong("FILES=FROM:TO,…, where FROM is a file", "FILES=%s: %s is no file", f, from)
		}
		to = place(to)
		if !filepath.IsLocal(to) {
			return wrong(filesHint, "FILES=%s: that is outside of the image", f)
		}
		if taken[to] != "" {
			return wrong(filesHint, "FILES=%s: %s is %s", f, to, taken[to])
		}
		for other := range taken {
			if strings.HasPrefix(other, to+"/") || strings.HasPrefix(to, other+"/") {
				return wrong(filesHint, "FILES=%s: %s would be a file and a directory (%s)", f, to, other)
			}
		}
		if slices.Contains(directories, to) {
			return wrong(filesHint, "FILES=%s: %s is a directory of the image", f, to)
		}
		taken[to] = "named twice"
	}
	return nil
}

// place is a path in the image, as its archive has it.
func place(to string) string { return path.Clean(strings.TrimLeft(to, "/")) }

// settings asks the agent whether it will take what the image says of heads and pin.
func (r *recipe) settings() error {
	c := agent.Config{Options: agent.Options{Head: r.head}, File: os.DevNull, Cmdline: os.DevNull}
	if strings.HasPrefix(r.ca, "sha256:") {
		c.CA = r.ca
	}
	_, err := agent.New(c)
	var o *agent.Outcome
	if !errors.As(err, &o) {
		return err
	}
	if what, ok := strings.CutPrefix(o.Message, "--head: "); ok {
		return wrong("HEAD=https://HEAD:8443; several with commas between them", "HEAD=%s: %s", r.head, what)
	}
	return wrong(caHint, "CA=%s: %s", r.ca, strings.TrimPrefix(o.Message, "--ca: "))
}

const caHint = "CA=ca.pem, which 'muster ca export > ca.pem' on the head writes, or CA=PIN, which 'muster ca show' prints"

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
	if err := durable.WriteFile(r.file(r.out), packed, 0o644); err != nil {
		return err
	}
	fmt.Fprintf(stderr, "%s: %.1f MiB, %s\n", r.out, float64(len(packed))/(1<<20), r.chosen)
	return nil
}

var directories = []string{"bin", "dev", "etc", "proc", "run", "sbin", "sys", "tmp"}

// records are the image's files beside /init.
func (r *recipe) records(stderr io.Writer) ([]cpio.Record, error) {
	records := []cpio.Record{
		cpio.CharDev("dev/console", 0o600, 5, 1),  // the kernel opens it before anything is mounted
		cpio.Symlink("bin/muster-agent", "/init"), // for a site's own program
		cpio.Symlink("sbin/modprobe", "/init"),    // for what the kernel asks for itself
		cpio.StaticFile("etc/initrd-release", "ID=muster\nNAME=\"Muster boot image\"\n", 0o644),
	}
	for _, dir := range directories {
		records = append(records, cpio.Directory(dir, 0o755))
	}
	drivers, err := r.drivers(stderr)
	if err != nil {
		return nil, err
	}
	files, err := r.siteFiles()
	if err != nil {
		return nil, err
	}
	return append(append(append(records, r.trust()...), drivers...), files...), nil
}

// trust is what the image says of heads and CA.
func (r *recipe) trust() (records []cpio.Record) {
	var conf strings.Builder
	if r.head != "" {
		fmt.Fprintf(&conf, "head = %q\n", r.head)
	}
	// In agent.toml either wins over the kernel command line, which may come from whoever answers DHCP.
	if strings.HasPrefix(r.ca, "sha256:") {
		fmt.Fprintf(&conf, "ca = %q\n", r.ca)
	} else if r.ca != "" {
		fmt.Fprintf(&conf, "ca = %q\n", "/etc/muster/ca.pem")
		records = append(records, cpio.StaticFile("etc/muster/ca.pem", r.certs, 0o644))
	}
	if conf.Len() > 0 {
		records = append(records, cpio.StaticFile("etc/muster/agent.toml", conf.String(), 0o644))
	}
	if len(records) > 0 {
		records = append(records, cpio.Directory("etc/muster", 0o755))
	}
	return records
}

// certificates are the CA certificates in a PEM file, and nothing else: an image is for all to read.
func (r *recipe) certificates() (text string, err error) {
	rest, err := os.ReadFile(r.file(r.ca))
	if r.ca == "tofu" && err != nil {
		return "", wrong("muster.ca=tofu on the kernel command line", "CA=tofu: there is no such file, and no image says so")
	}
	if err != nil {
		return "", wrong(caHint, "CA=%s: it cannot be read (%v)", r.ca, errors.Unwrap(err))
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
		return "", wrong(caHint, "CA=%s: there is no CA certificate in it, PEM", r.ca)
	}
	return text, nil
}

// drivers are the modules that were asked for, with what they need, and the firmware that is at hand.
func (r *recipe) drivers(stderr io.Writer) (records []cpio.Record, err error) {
	if r.kernel == "" {
		r.chosen = "without kernel modules"
		return nil, nil
	}
	tree, err := choose.Open(r.file(r.kernel))
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
	for _, fw := range chosen.Firmware(os.DirFS(r.file(r.firmware))) {
		if len(fw.Files) == 0 {
			fmt.Fprintf(stderr, "note: %s may ask for firmware %s, which is not at hand\n", fw.Module, fw.Name)
		}
		for _, name := range fw.Files {
			data, err := os.ReadFile(filepath.Join(r.file(r.firmware), name))
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
		info, err := os.Stat(r.file(from))
		if err != nil {
			return nil, err
		}
		data, err := os.ReadFile(r.file(from))
		if err != nil {
			return nil, err
		}
		records = append(records, cpio.StaticFile(place(to), string(data), uint64(info.Mode().Perm())))
	}
	return records, nil
}
