package choose

import (
	"maps"
	"path"
	"path/filepath"
	"slices"

	"muster/initramfs/modules"
)

// File is a file for the image. Path is relative to its root.
type File struct {
	Path    string
	Content []byte
}

// Files are the files of the choice for the image: the index, then the modules, decompressed and in load order.
// Their signatures stay: a locked-down kernel asks for them.
func (c *Choice) Files() ([]File, error) {
	root := path.Join("lib/modules", c.tree.release)
	index := c.Index().Format()
	var files []File
	for _, name := range slices.Sorted(maps.Keys(index)) {
		files = append(files, File{path.Join(root, name), []byte(index[name])})
	}
	for _, m := range c.Modules {
		b, err := read(filepath.Join(c.tree.dir, c.tree.modules[m.Name].path))
		if err != nil {
			return nil, err
		}
		files = append(files, File{path.Join(root, m.Path), b})
	}
	return files, nil
}

// Index is what the image's modules directory says of its modules: what depmod would say, and what a module
// asks the kernel for.
func (c *Choice) Index() modules.Index {
	x := modules.Index{Builtin: c.tree.builtin.Builtin, BuiltinAliases: c.tree.builtin.BuiltinAliases}
	paths := map[string]string{}
	for _, m := range c.Modules {
		paths[m.Name] = m.Path
		x.Modules = append(x.Modules, indexed(m, paths))
		for _, pattern := range m.Info.Aliases {
			x.Aliases = append(x.Aliases, modules.Alias{Pattern: pattern, Module: m.Name})
		}
	}
	for _, m := range c.Modules {
		post := slices.Clone(m.Info.Post)
		for _, other := range asked[m.Name] {
			if paths[other] != "" {
				post = append(post, other)
			}
		}
		if len(m.Info.Pre)+len(post) > 0 {
			x.Softdeps = append(x.Softdeps, modules.Softdep{Module: m.Name, Pre: m.Info.Pre, Post: post})
		}
	}
	return x
}

// indexed is a module as modules.dep has it, when paths has what it needs.
func indexed(m Module, paths map[string]string) modules.Module {
	d := modules.Module{Path: m.Path}
	for _, need := range slices.Backward(m.Needs) {
		d.Needs = append(d.Needs, paths[need])
	}
	return d
}
