// Package choose chooses the kernel modules of a boot image and puts them in an order in which each finds
// loaded what it needs. It reads what modules say of themselves in their .modinfo, so that it serves a
// kernel's package that was unpacked and never installed as well as a directory that depmod has been over.
package choose

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"muster/initramfs/modules"
)

// Tree is a kernel's modules directory, lib/modules/RELEASE.
type Tree struct {
	dir     string
	release string
	modules map[string]*module
	names   []string // of modules, in order
	builtin modules.Index
}

// module is a module of a tree.
type module struct {
	name string
	path string // below the tree, "/" between, as it is stored
	info Info
	err  error // why info is not known
}

// Open reads what every module of a directory says of itself. The directory's name is the kernel's release.
func Open(dir string) (*Tree, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	t := &Tree{dir: dir, release: filepath.Base(dir), modules: map[string]*module{}}
	if err := t.find(); err != nil {
		return nil, err
	}
	if len(t.modules) == 0 {
		return nil, fmt.Errorf("%s has no kernel modules\nhint: name the directory that has a kernel's release for its name: /lib/modules/6.1.0-56-amd64, say", dir)
	}
	if t.builtin, err = readBuiltin(dir); err != nil {
		return nil, err
	}
	t.inspect()
	return t, nil
}

// find lists the module files. Where two have one name, the directory decides as depmod's search order does:
// updates and extra hide what came with the kernel.
func (t *Tree) find() error {
	err := filepath.WalkDir(t.dir, func(file string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !isModule(file) {
			return err
		}
		rel, err := filepath.Rel(t.dir, file)
		if err != nil {
			return err
		}
		m := &module{name: modules.Name(rel), path: filepath.ToSlash(rel)}
		if other, ok := t.modules[m.name]; !ok || rank(m.path) < rank(other.path) {
			t.modules[m.name] = m
		}
		return nil
	})
	for name := range t.modules {
		t.names = append(t.names, name)
	}
	slices.Sort(t.names)
	return err
}

func rank(path string) int {
	top, _, _ := strings.Cut(path, "/")
	if i := slices.Index([]string{"updates", "extra", "kernel"}, top); i >= 0 {
		return i
	}
	return 3
}

// inspect reads all modules' .modinfo. One that cannot be read is an error for who wants it, and nobody else.
func (t *Tree) inspect() {
	todo := make(chan *module)
	var workers sync.WaitGroup
	for range runtime.NumCPU() {
		workers.Go(func() {
			for m := range todo {
				m.info, m.err = readInfo(filepath.Join(t.dir, m.path))
			}
		})
	}
	for _, name := range t.names {
		todo <- t.modules[name]
	}
	close(todo)
	workers.Wait()
}

// readBuiltin reads what is part of the kernel, and its plain aliases: a pattern is for a device, and the
// device has its driver.
func readBuiltin(dir string) (modules.Index, error) {
	files := map[string]string{}
	for _, name := range []string{"modules.builtin", "modules.builtin.modinfo"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return modules.Index{}, err
		}
		files[name] = string(b)
	}
	x, err := modules.Parse(files)
	x.BuiltinAliases = slices.DeleteFunc(x.BuiltinAliases, func(a modules.Alias) bool { return strings.ContainsAny(a.Pattern, `*?[`) })
	return x, err
}

// isBuiltin reports whether a name or alias is part of the kernel.
func (t *Tree) isBuiltin(name string) bool {
	plain := strings.ReplaceAll(name, "-", "_")
	return slices.ContainsFunc(t.builtin.Builtin, func(path string) bool { return modules.Name(path) == plain }) ||
		slices.ContainsFunc(t.builtin.BuiltinAliases, func(a modules.Alias) bool { return modules.Match(a.Pattern, name) })
}

// aliased are the names of the modules that have an alias for name, in order.
func (t *Tree) aliased(name string) (names []string) {
	for _, other := range t.names {
		if slices.ContainsFunc(t.modules[other].info.Aliases, func(a string) bool { return modules.Match(a, name) }) {
			names = append(names, other)
		}
	}
	return names
}
