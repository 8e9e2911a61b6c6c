package choose

import (
	"fmt"
	"slices"
	"strings"
)

// Choice is what was chosen of a tree. The same tree and wishes give the same choice.
type Choice struct {
	Modules []Module // in an order in which they can be loaded one by one
	tree    *Tree
}

// Module is a module that was chosen.
type Module struct {
	Name  string   // with "_" for "-"
	Path  string   // of the decompressed file below lib/modules/RELEASE
	Needs []string // names of all modules that it needs, directly or not, in an order in which they can be loaded
	Info  Info
}

// Choose finds the modules that wishes name, with all that they need and what they would like to have beside
// them. A wish is the name of a set (Sets), of a module, its alias, a pattern for names, or a path below
// kernel/. A wish without modules, a module that is not there, and modules that need each other are errors
// that name them. What a module merely would like may be absent.
func (t *Tree) Choose(wishes ...string) (*Choice, error) {
	c := &chooser{tree: t, needs: map[string][]string{}, placed: map[string]bool{}}
	for _, wish := range wishes {
		names, err := t.wanted(wish)
		if err != nil {
			return nil, err
		}
		c.pending = append(c.pending, names...)
	}
	slices.Sort(c.pending) // the order of wishes is no matter
	if err := c.run(); err != nil {
		return nil, err
	}
	choice := &Choice{tree: t}
	for _, name := range c.order {
		m := t.modules[name]
		choice.Modules = append(choice.Modules, Module{name, plainPath(m.path), c.needs[name], m.info})
	}
	return choice, nil
}

type chooser struct {
	tree    *Tree
	pending []string            // to be placed
	needs   map[string][]string // of each module seen, in load order
	open    []string            // whose placing has begun, outermost first
	placed  map[string]bool
	order   []string
}

func (c *chooser) run() error {
	for len(c.pending) > 0 {
		name := c.pending[0]
		c.pending = c.pending[1:]
		if err := c.place(name); err != nil {
			return err
		}
	}
	return nil
}

// place puts a module into the order, after what it needs and what it would like to have before it.
func (c *chooser) place(name string) error {
	if c.placed[name] {
		return nil
	}
	needs, err := c.closure(name, nil)
	if err != nil {
		return err
	}
	c.open = append(c.open, name)
	info := c.tree.modules[name].info
	for _, need := range needs {
		if err := c.place(need); err != nil {
			return err
		}
	}
	for _, soft := range c.resolve(info.Pre) {
		if err := c.placeSoft(soft); err != nil {
			return err
		}
	}
	c.open = c.open[:len(c.open)-1]
	c.placed[name] = true
	c.order = append(c.order, name)
	c.pending = append(c.pending, c.resolve(info.Post)...)
	return nil
}

// placeSoft puts a module before one that would like that, or at the end when it needs itself what is not
// placed yet: a wish gives way to a need.
func (c *chooser) placeSoft(name string) error {
	needs, err := c.closure(name, nil)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(append(needs, name), func(n string) bool { return slices.Contains(c.open, n) }) {
		c.pending = append(c.pending, name)
		return nil
	}
	return c.place(name)
}

// resolve finds the modules of names or aliases, as far as there are any.
func (c *chooser) resolve(names []string) (found []string) {
	for _, name := range names {
		plain := strings.ReplaceAll(name, "-", "_")
		if _, ok := c.tree.modules[plain]; ok {
			found = append(found, plain)
		} else {
			found = append(found, c.tree.aliased(name)...)
		}
	}
	return found
}

// closure is what a module needs, directly or not, each after what it needs itself. users are the modules
// that need this one, outermost first.
func (c *chooser) closure(name string, users []string) ([]string, error) {
	if needs, ok := c.needs[name]; ok {
		return needs, nil
	}
	if slices.Contains(users, name) {
		return nil, fmt.Errorf("modules need each other: %s", strings.Join(append(users, name), " needs "))
	}
	m, err := c.sound(name, users)
	if err != nil {
		return nil, err
	}
	var needs []string
	for _, direct := range m.info.Depends {
		if _, ok := c.tree.modules[direct]; !ok && c.tree.isBuiltin(direct) {
			continue
		}
		below, err := c.closure(direct, append(slices.Clone(users), name))
		if err != nil {
			return nil, err
		}
		for _, need := range append(slices.Clone(below), direct) {
			if !slices.Contains(needs, need) {
				needs = append(needs, need)
			}
		}
	}
	c.needs[name] = needs
	return needs, nil
}

// sound is a module that is there, can be read, and was built for this kernel.
func (c *chooser) sound(name string, users []string) (*module, error) {
	m, ok := c.tree.modules[name]
	if !ok {
		return nil, fmt.Errorf("module %s needs %s, which %s does not have\nhint: take the whole of the kernel's modules directory", users[len(users)-1], name, c.tree.dir)
	}
	if m.err != nil {
		return nil, fmt.Errorf("module %s: %v", name, m.err)
	}
	if release, _, _ := strings.Cut(m.info.Vermagic, " "); release != c.tree.release {
		return nil, fmt.Errorf("module %s was built for kernel %q, not for %s\nhint: the directory's name must be the release of its kernel, as uname -r says", name, release, c.tree.release)
	}
	return m, nil
}
