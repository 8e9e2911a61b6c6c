package cli

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"muster/agent"
	"muster/internal/testtpm"
)

func TestExitStatus(t *testing.T) {
	root := t.TempDir()
	for _, c := range []struct {
		args   []string
		status int
		stdout string // a part of it
		stderr string
	}{
		{[]string{"--help"}, 0, "Usage: muster-agent COMMAND", ""},
		{[]string{"run", "--help"}, 0, "--wait", ""},
		{[]string{"help"}, 0, "Usage: muster-agent COMMAND", ""},
		{[]string{"help", "run"}, 0, "Usage: muster-agent run [options]", ""},
		{[]string{"help", "enrol"}, agent.StatusConfig, "", `no command "enrol"`},
		{[]string{"version"}, 0, "muster-agent ", ""},
		{nil, agent.StatusConfig, "", "hint: muster-agent --help"},
		{[]string{"enrol"}, agent.StatusConfig, "", `no command "enrol"`},
		{[]string{"run", "--no-such"}, agent.StatusConfig, "", "hint: muster-agent run --help"},
		{[]string{"status", "--head", "https://h"}, agent.StatusConfig, "", "hint: muster-agent status --help"},
		{[]string{"run", "more"}, agent.StatusConfig, "", "hint: muster-agent run --help"},
		{[]string{"get"}, agent.StatusConfig, "", "hint: muster-agent get --help"},
		{[]string{"run", "--root", root, "--wait", "soon"}, agent.StatusConfig, "", "--wait"},
		{[]string{"run", "--root", root, "--tpm", "x"}, agent.StatusConfig, "", "--tpm"},
		{[]string{"run", "--root", root, "--wait", "0", "--tpm", "device:/nowhere/tpm0"}, agent.StatusNoTPM, "", "hint: "},
		{[]string{"status", "--root", root, "--tpm", "swtpm:path=/nowhere"}, agent.StatusNoTPM, "", "hint: "},
		{[]string{"doctor", "--root", root, "--tpm", "device:/nowhere/tpm0"}, agent.StatusFailed, "fail  tpm", ""},
	} {
		var stdout, stderr bytes.Buffer
		status := (&Program{Version: "devel", Stdout: &stdout, Stderr: &stderr}).Run(context.Background(), c.args)
		if status != c.status || !strings.Contains(stdout.String(), c.stdout) || !strings.Contains(stderr.String(), c.stderr) {
			t.Errorf("%q: status %d\nstdout %s\nstderr %s", c.args, status, stdout.String(), stderr.String())
		}
		if n := strings.Count(strings.TrimSpace(stderr.String()), "\n"); status != 0 && n > 1 {
			t.Errorf("%q: more than message and hint:\n%s", c.args, stderr.String())
		}
	}
}

// TestNoHead: with a TPM, what is missing is named one after the other.
func TestNoHead(t *testing.T) {
	m := testtpm.Start(t)
	root := t.TempDir()
	common := []string{"run", "--tpm", m.Spec(), "--root", root, "--node", "n0", "--wait", "0"}
	pin := "sha256:" + strings.Repeat("0", 64)
	for _, c := range []struct {
		args   []string
		status int
		stderr string
	}{
		{nil, agent.StatusConfig, "no CA is known"},
		{[]string{"--ca", pin}, agent.StatusConfig, "no head is configured"},
		{[]string{"--ca", pin, "--head", "https://127.0.0.1:1"}, agent.StatusTryAgain, "no head answered"},
	} {
		var stdout, stderr bytes.Buffer
		status := (&Program{Version: "devel", Stdout: &stdout, Stderr: &stderr}).Run(context.Background(), append(common[:len(common):len(common)], c.args...))
		if status != c.status || !strings.Contains(stderr.String(), c.stderr) || !strings.Contains(stderr.String(), "\nhint: ") {
			t.Errorf("%q: status %d\n%s%s", c.args, status, stdout.String(), stderr.String())
		}
	}
	if left, _ := filepath.Glob(root + "/run/muster/[^.]*"); len(left) > 0 {
		t.Errorf("files: %v", left)
	}
}

// TestHelpNamesEveryFlag: what run takes is on its help page, with an explanation.
func TestHelpNamesEveryFlag(t *testing.T) {
	var stdout, stderr bytes.Buffer
	(&Program{Version: "devel", Stdout: &stdout, Stderr: &stderr}).Run(context.Background(), []string{"run", "--help"})
	for _, flag := range []string{"ca", "clock", "config", "head", "install", "key", "node", "root", "tpm", "wait"} {
		if !strings.Contains(stdout.String(), "  --"+flag+" ") {
			t.Errorf("no --%s", flag)
		}
	}
}

// TestLineEnd: a body without a newline at its end gets one on a terminal; a pipe gets its bytes.
func TestLineEnd(t *testing.T) {
	out := &lineEnd{w: io.Discard, done: true}
	for _, c := range []struct {
		text string
		done bool
	}{{"", true}, {"a\nb", false}, {"", false}, {"c\n", true}} {
		if io.WriteString(out, c.text); out.done != c.done {
			t.Errorf("after %q: %v", c.text, out.done)
		}
	}
	tty, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if !terminal(tty) || terminal(null) || terminal(&bytes.Buffer{}) {
		t.Errorf("ptmx %v, null %v", terminal(tty), terminal(null))
	}
}
