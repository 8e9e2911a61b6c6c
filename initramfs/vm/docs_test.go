package vm_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestDocument: what docs/boot.md tells its readers to type does what it says there.
func TestDocument(t *testing.T) {
	needFull(t, "dracut", "mkinitramfs", "systemd-analyze")
	r := newRig(t)
	d := newDocument(t, r.ca())

	d.run("dracut")
	image := "/boot/initramfs-" + d.release + ".img"
	d.holds([]string{"lsinitrd", image}, "usr/bin/muster-agent", "usr/lib/muster/boot", "etc/muster/ca.pem",
		"hooks/cmdline/94-muster-net.sh", "hooks/initqueue/timeout/20-muster-alone.sh", "hooks/pre-mount/20-muster.sh")

	d.run("dracut without a rebuild")
	d.holds([]string{"sh", "-c", "zcat " + d.dir + "/src/muster.cpio.gz | cpio -it --quiet"}, "usr/bin/muster-agent", "etc/muster/ca.pem",
		"usr/lib/dracut/hooks/pre-mount/20-muster.sh", "var/lib/dracut/hooks/pre-mount/20-muster.sh")

	d.run("initramfs-tools")
	d.holds([]string{"lsinitramfs", "/boot/initrd.img-" + d.release}, "usr/bin/muster-agent", "usr/lib/muster/boot",
		"etc/muster/ca.pem", "etc/initrd-release", "scripts/init-premount/muster")

	d.run("Diskful nodes")
	d.holds([]string{"ls", "/etc/systemd/system/multi-user.target.wants"}, "muster-agent.service")

	d.write("muster-boot.service", documented(t, d.Name(), "mkosi"))
	d.holds([]string{"sh", "-c", "systemd-analyze verify --man=no --recursive-errors=no " + d.dir + "/muster-boot.service && echo verified"}, "verified")
}

// TestDocumentImage: its first lines make Muster's own boot image.
func TestDocumentImage(t *testing.T) {
	needRoot(t)
	d := newDocument(t, newRig(t).ca())
	d.run("Muster's own boot image")
	d.holds([]string{"sh", "-c", "xz -dc " + d.dir + "/src/bin/muster.cpio.xz | cpio -it --quiet"}, "init", "bin/muster-agent",
		"etc/initrd-release", "etc/muster/agent.toml", "etc/muster/ca.pem", "virtio_net.ko")
}

// TestDocumentBlocks: each block of docs/boot.md is run by a test, or says why none can run it.
func TestDocumentBlocks(t *testing.T) {
	blocks := documentBlocks(t)
	if len(blocks) < 10 {
		t.Errorf("only %d blocks", len(blocks))
	}
	for _, b := range blocks {
		reason, without := strings.CutPrefix(b.about, "not run: ")
		if without && reason != "" || runBy(t, b) {
			continue
		}
		t.Errorf("docs/boot.md, %s: no test runs this block, and it does not say why (%q):\n%s", b.section, b.about, b.text)
	}
}

// runBy says whether the test that a block names is one of this package's that asks for blocks of its section.
func runBy(t *testing.T, b block) bool {
	t.Helper()
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "\nfunc "+b.about+"(t *testing.T)") && strings.Contains(string(text), strconv.Quote(b.section)+")") {
			return true
		}
	}
	return false
}

// block is a part of the document that is there to be copied. About is what it says of itself behind its language.
type block struct{ section, about, text string }

// blockPattern fits a heading, a block with its words, or the beginning of one that has no place for words.
var blockPattern = regexp.MustCompile("(?ms)^#+ (.*?)$|^```(?:\\w+ )?(.*?)$\n(.*?)^```$|^$\n(?: {4}|\t)(.*?)$|^ *(?:```|~~~)(.*?)$")

// documentBlocks are all blocks of docs/boot.md.
func documentBlocks(t *testing.T) (found []block) {
	t.Helper()
	text, err := os.ReadFile("../../docs/boot.md")
	if err != nil {
		t.Fatal(err)
	}
	section := ""
	for _, m := range blockPattern.FindAllStringSubmatch(string(text), -1) {
		if m[1] != "" {
			section = m[1]
			continue
		}
		found = append(found, block{section, m[2], m[3] + m[4] + m[5]})
	}
	return found
}

// documented is what a section has for a test to run.
func documented(t *testing.T, test, section string) (text string) {
	t.Helper()
	for _, b := range documentBlocks(t) {
		if b.section == section && b.about == test {
			text += b.text
		}
	}
	if text == "" {
		t.Fatalf("docs/boot.md, %s: there is no block for %s", section, test)
	}
	return text
}

// document is a machine that is as docs/boot.md says, with a copy of the source.
type document struct{ *builder }

func newDocument(t *testing.T, ca string) *document {
	t.Helper()
	d := &document{newBuilder(t, "/")}
	const copied = "mkdir $0/src $0/bin && tar -C ../.. --exclude=./bin --exclude=./.git -cf - . | tar -C $0/src -xf -"
	if err := command(".", "sh", "-c", copied, d.dir); err != nil {
		t.Fatal(err)
	}
	d.write("src/ca.pem", ca)
	uname := "#!/bin/sh\n[ \"$*\" != -r ] || exec echo " + d.release + "\nexec /usr/bin/uname \"$@\"\n"
	if err := os.WriteFile(filepath.Join(d.dir, "bin/uname"), []byte(uname), 0o755); err != nil {
		t.Fatal(err)
	}
	return d
}

// run does what a section says.
func (d *document) run(section string) {
	d.Helper()
	c := d.command("sh", "-euxc", "cd "+d.dir+"/src\n"+documented(d.T, d.Name(), section))
	c.Env = append(os.Environ(), "PATH="+filepath.Join(d.dir, "bin")+":"+os.Getenv("PATH"), "SYSTEMD_OFFLINE=1")
	if out, err := c.CombinedOutput(); err != nil {
		d.Fatalf("%s: %v\n%s", section, err, out)
	}
}

// holds checks that a listing has names.
func (d *document) holds(lister []string, names ...string) {
	d.Helper()
	out, err := d.command(lister[0], lister[1:]...).CombinedOutput()
	if err != nil {
		d.Fatalf("%v: %v\n%s", lister, err, out)
	}
	for _, name := range names {
		if !regexp.MustCompile(`(?m)(?:^|/|\s)` + regexp.QuoteMeta(name) + `$`).Match(out) {
			d.Errorf("%v has no %s", lister, name)
		}
	}
}
