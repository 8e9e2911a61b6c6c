package muster_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"muster/internal/testtpm"
)

// TestMakeWithoutGo: whoever has no Go yet reads in one line what to install; help needs none.
func TestMakeWithoutGo(t *testing.T) {
	testtpm.Need(t, "make")
	run := func(target string) (string, error) {
		c := exec.Command("make", "--no-print-directory", "GO=no-such-go", target)
		c.Env = append(os.Environ(), "MAKEFLAGS=") // of the make that runs this test
		out, err := c.CombinedOutput()
		return string(out), err
	}
	for _, target := range []string{"build", "demo", "initramfs", "install"} {
		if out, err := run(target); err == nil || strings.Count(out, "\n") != 1 || !strings.Contains(out, "https://go.dev/dl") {
			t.Errorf("make %s: %v\n%s", target, err, out)
		}
	}
	out, err := run("help")
	for _, target := range []string{"build", "initramfs", "uki", "demo", "vm-demo", "test", "install", "install-boot"} {
		if err != nil || !strings.Contains(out, "make "+target+" ") {
			t.Errorf("make help, without %s: %v\n%s", target, err, out)
		}
	}
}

// TestMakeWords: whatever is in a value reaches the program as one word, and files are those of the directory where
// make is called.
func TestMakeWords(t *testing.T) {
	testtpm.Need(t, "make")
	dir := t.TempDir()
	for variable, value := range map[string]string{"CA": "it's my ca.pem", "HEAD": "a b", "FILES": "go.mod:bin/init", "KERNEL": "a'b c"} {
		c := exec.Command("make", "--no-print-directory", "initramfs", variable+"="+value, "IMAGE="+filepath.Join(dir, "an image.cpio"))
		c.Env = append(os.Environ(), "MAKEFLAGS=")
		if out, err := c.CombinedOutput(); err == nil || !strings.Contains(string(out), "make initramfs: "+variable+"="+value+": ") {
			t.Errorf("%s=%s: %v\n%s", variable, value, err, out)
		}
	}
	c := exec.Command("make", "--no-print-directory", "uki", "KERNEL_IMAGE=it's a kernel", "CMDLINE=it's", "UKI="+filepath.Join(dir, "uki"))
	c.Env = append(os.Environ(), "MAKEFLAGS=")
	if out, err := c.CombinedOutput(); err == nil || !strings.Contains(string(out), "make uki: kernel it's a kernel: ") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestManual: a page shows, line for line, what --help says of the program and of each command.
func TestManual(t *testing.T) {
	testtpm.Need(t, "nroff")
	for name, commands := range map[string][][]string{
		"muster":       {{}, {"certs"}, {"certs", "enable"}, {"ca", "export"}, {"serve"}, {"log"}},
		"muster-agent": {{}, {"run"}, {"get"}, {"doctor"}},
	} {
		page, err := exec.Command("docs/man.sh", filepath.Join(bin, name)).Output()
		if err != nil {
			t.Fatal(err)
		}
		c := exec.Command("nroff", "-man", "-ww", "-c", "-Tutf8", "-rLL=200n")
		c.Stdin = bytes.NewReader(page)
		var warnings bytes.Buffer
		c.Stderr = &warnings
		out, err := c.Output()
		if err != nil || warnings.Len() > 0 {
			t.Fatalf("%s: %v\n%s", name, err, warnings.String())
		}
		rendered := squeezed(regexp.MustCompile("(?s).\b").ReplaceAllString(string(out), ""))
		for _, command := range commands {
			help, err := exec.Command(filepath.Join(bin, name), append(command, "--help")...).Output()
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(rendered, squeezed(string(help))) {
				t.Errorf("%s has no help of %q as it is:\n%s", name, command, help)
			}
		}
	}
}

// squeezed is a text without its spaces at the ends of lines, and without empty lines.
func squeezed(text string) string {
	var lines []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "\n")
}
