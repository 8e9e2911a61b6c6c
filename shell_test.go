package muster_test

import (
	"bufio"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"muster/internal/testtpm"
)

var shebang = regexp.MustCompile(`^#! ?/(?:usr/)?bin/(sh|bash|ash)\b`)

// TestShell: every shell script of ours is one to its own shell, and shellcheck finds nothing in it.
func TestShell(t *testing.T) {
	t.Parallel()
	testtpm.Need(t, "shellcheck")
	scripts := map[string]string{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (path == ".git" || path == "bin") {
			return fs.SkipDir
		}
		if d.Type().IsRegular() {
			if shell := shellOf(t, path); shell != "" {
				scripts[path] = shell
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(scripts) < 5 {
		t.Errorf("only %v: were all found?", scripts)
	}
	for path, shell := range scripts {
		interpreter, dialect := shell, shell
		if shell == "ash" { // busybox has it; its nearest kin is Debian's sh
			interpreter, dialect = "sh", "dash"
		}
		for _, args := range [][]string{{interpreter, "-n", path}, {"shellcheck", "--shell", dialect, path}} {
			if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
				t.Errorf("%v: %v\n%s", args, err, out)
			}
		}
	}
}

// shellOf is the shell that a script is for, "" for what is none.
func shellOf(t *testing.T, path string) string {
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	first, _ := bufio.NewReader(f).ReadString('\n')
	if m := shebang.FindStringSubmatch(first); m != nil {
		return m[1]
	}
	return ""
}
