package vm_test

import (
	"os"
	"path/filepath"
	"regexp"
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

	unit := d.blocks("mkosi", "ini")
	d.write("muster-boot.service", strings.Join(unit, ""))
	d.holds([]string{"sh", "-c", "systemd-analyze verify --man=no --recursive-errors=no " + d.dir + "/muster-boot.service && echo verified"}, "verified")
}

// document is docs/boot.md, beside a copy of the source, on a machine that is as it says.
type document struct {
	*builder
	text string
}

func newDocument(t *testing.T, ca string) *document {
	t.Helper()
	text, err := os.ReadFile("../../docs/boot.md")
	if err != nil {
		t.Fatal(err)
	}
	d := &document{newBuilder(t, "/"), string(text)}
	for _, args := range [][]string{
		{"sh", "-c", "mkdir $0/src $0/bin && tar -C ../.. --exclude=./bin --exclude=./.git -cf - . | tar -C $0/src -xf -", d.dir},
		{"install", "-D", "-m", "755", parts.agent, filepath.Join(d.dir, "usr/bin/muster-agent")},
	} {
		if err := command(".", args[0], args[1:]...); err != nil {
			t.Fatal(err)
		}
	}
	d.write("src/ca.pem", ca)
	uname := "#!/bin/sh\n[ \"$*\" != -r ] || exec echo " + d.release + "\nexec /usr/bin/uname \"$@\"\n"
	if err := os.WriteFile(filepath.Join(d.dir, "bin/uname"), []byte(uname), 0o755); err != nil {
		t.Fatal(err)
	}
	return d
}

// blocks are the blocks of a kind in a section.
func (d *document) blocks(section, kind string) (found []string) {
	d.Helper()
	_, rest, _ := strings.Cut(d.text, "\n## "+section+"\n")
	rest, _, _ = strings.Cut(rest, "\n## ")
	for _, m := range regexp.MustCompile("(?ms)^```"+kind+"\n(.*?)^```$").FindAllStringSubmatch(rest, -1) {
		found = append(found, m[1])
	}
	if len(found) == 0 {
		d.Fatalf("%s has no block %q", section, kind)
	}
	return found
}

// run does what a section says.
func (d *document) run(section string) {
	d.Helper()
	script := strings.Join(d.blocks(section, "sh boot"), "")
	c := d.command("sh", "-euxc", "cd "+d.dir+"/src\n"+script)
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
