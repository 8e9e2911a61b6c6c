// Mkinitramfs builds Muster's boot image: an initramfs with /init, the kernel modules that a node needs to
// reach its head, and, where wanted, what the node is to trust. The same source and the same options give
// the same bytes. People run it by "make initramfs": what it says has that command's names.
//
// Synopsis:
//
//	mkinitramfs -o FILE [-in DIR] [-kernel DIR] [-modules LIST] [-firmware DIR] [-ca PIN|FILE] [-head URL,…]
//	            [-file FROM:TO]…
//
// Options:
//
//	-o FILE         the image; its name ends in .cpio, .cpio.gz, .cpio.xz or .cpio.zst
//	-in DIR         where the names of files start that do not start with /; default: here
//	-kernel DIR     the kernel's modules, /lib/modules/RELEASE; without it the image has none
//	-modules LIST   sets, names and patterns of modules, separated by commas; default tpm,virtio,server,
//	                and root (file systems and disks) with them
//	-firmware DIR   /lib/firmware: files that the chosen modules ask for go into the image
//	-ca PIN|FILE    the cluster's CA; it wins over muster.ca= on the kernel command line
//	-head URL,…     the heads; they win over muster.head= on the kernel command line
//	-file FROM:TO   a file of the site's, and its place in the image, where nothing may be yet
//	-version TEXT   what muster-agent in the image calls itself
//	-committed N    when the source was committed, in Unix seconds: no node is earlier than that
//
// It runs the go command in the directory of this module.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
)

func main() { os.Exit(run(os.Args[1:], os.Stderr)) }

// run is the program: it returns the exit status, 2 for a command line that makes no sense.
func run(args []string, stderr io.Writer) int {
	var r recipe
	fs := flag.NewFlagSet("mkinitramfs", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&r.out, "o", "", "the image, `FILE`.cpio, .cpio.gz, .cpio.xz or .cpio.zst")
	fs.StringVar(&r.in, "in", "", "`DIR` where the names of files start")
	fs.StringVar(&r.kernel, "kernel", "", "`DIR` of the kernel's modules, /lib/modules/RELEASE")
	fs.Var((*list)(&r.modules), "modules", "`LIST` of sets, names and patterns of modules (default tpm,virtio,server,root)")
	fs.StringVar(&r.firmware, "firmware", "", "`DIR` of firmware files")
	fs.StringVar(&r.ca, "ca", "", "the cluster's CA: `sha256:HEX`, or a PEM file")
	fs.StringVar(&r.head, "head", "", "the heads, `URLS` separated by commas")
	fs.Var((*list)(&r.files), "file", "a file for the image, `FROM:TO`")
	fs.StringVar(&r.version, "version", "devel", "`TEXT` that muster-agent in the image calls itself")
	fs.Int64Var(&r.committed, "committed", 0, "when the source was committed, in Unix `SECONDS`")
	err := fs.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fs.SetOutput(stderr)
		fs.Usage()
		return 0
	}
	if err == nil && (fs.NArg() > 0 || r.out == "") {
		err = errors.New("one -o FILE is wanted, and no arguments")
	}
	if err == nil {
		err = r.check(stderr)
	}
	if err != nil {
		return failed(stderr, err, 2)
	}
	if err := r.build(stderr); err != nil {
		return failed(stderr, err, 1)
	}
	return 0
}

// problem is what somebody wrote who runs make initramfs, and what to write instead.
type problem struct{ what, hint string }

func (p *problem) Error() string { return p.what + "\nhint: " + p.hint }

func wrong(hint, format string, args ...any) error {
	return &problem{fmt.Sprintf(format, args...), hint}
}

func failed(stderr io.Writer, err error, status int) int {
	text := "make initramfs: " + err.Error()
	if !strings.Contains(text, "\nhint: ") {
		text += "\nhint: make help"
	}
	fmt.Fprintln(stderr, text)
	return status
}

// list is a flag that may be repeated, and whose value may be several with commas.
type list []string

func (l *list) String() string { return strings.Join(*l, ",") }

func (l *list) Set(text string) error {
	*l = append(*l, strings.FieldsFunc(text, func(r rune) bool { return r == ',' })...)
	return nil
}
