package choose_test

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"muster/initramfs/modules"
	"muster/initramfs/modules/choose"
)

// kernel is the modules directory of Debian's kernel, as .ci/kernel unpacks it: depmod has not been there.
func kernel(t testing.TB, flavour string) string {
	t.Helper()
	found, err := filepath.Glob("../../../bin/vm/kernel/" + flavour + "/lib/modules/*")
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 {
		absent(t, "no kernel: run .ci/kernel "+flavour)
	}
	dir, err := filepath.Abs(found[0])
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func absent(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(what)
	}
	t.Skip(what)
}

func open(t testing.TB, dir string) *choose.Tree {
	t.Helper()
	tree, err := choose.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func mustChoose(t testing.TB, tree *choose.Tree, wishes ...string) *choose.Choice {
	t.Helper()
	c, err := tree.Choose(wishes...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func names(c *choose.Choice) (names []string) {
	for _, m := range c.Modules {
		names = append(names, m.Name)
	}
	return names
}

// run runs one of kmod's programs, or another, and returns what it says.
func run(t testing.TB, program string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/" + program) // not in the path of an ordinary user
	}
	if err != nil {
		absent(t, program+" is not installed: run .ci/deps test")
	}
	var stderr strings.Builder
	cmd := exec.Command(path, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, stderr.String())
	}
	return string(out)
}

// installed is a root directory that has the kernel's modules as if its package had been installed: depmod
// has been over them. It is depmod's own reading of the modules, to compare ours with.
func installed(t testing.TB, dir string) (root string) {
	t.Helper()
	root = t.TempDir()
	release := filepath.Base(dir)
	inside := filepath.Join(root, "lib/modules", release)
	if err := os.MkdirAll(inside, 0o755); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if err := os.Symlink(filepath.Join(dir, f.Name()), filepath.Join(inside, f.Name())); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "depmod", "-b", root, release)
	return root
}

// unpack writes the files of a choice below a new root directory.
func unpack(t testing.TB, c *choose.Choice) (root string) {
	t.Helper()
	root = t.TempDir()
	files, err := c.Files()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		write(t, filepath.Join(root, f.Path), f.Content)
	}
	return root
}

func write(t testing.TB, file string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, content, 0o644); err != nil {
		t.Fatal(err)
	}
}

// part is a modules directory with some modules of another alone, by name, in their places.
func part(t testing.TB, dir string, keep ...string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), filepath.Base(dir))
	err := filepath.WalkDir(dir, func(file string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		for _, name := range keep {
			if strings.HasSuffix(file, ".ko") && modules.Name(file) == name {
				b, err := os.ReadFile(file)
				if err != nil {
					return err
				}
				write(t, filepath.Join(to, strings.TrimPrefix(file, dir)), b)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return to
}
