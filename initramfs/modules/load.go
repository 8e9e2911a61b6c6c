package modules

import (
	"os"
	"slices"
	"strings"
)

// Loader loads modules from a modules directory. It remembers what it has loaded, and tries nothing twice.
// It is not for concurrent use.
type Loader struct {
	dir     string
	index   Index             // its patterns in canonical form
	params  map[string]string // by module
	insert  Insert
	files   map[string]Module // by module
	builtin map[string]bool
	tried   map[string]error // by module; a module being loaded is in it with nil
	loaded  []string
	seen    map[string]bool // modaliases
}

// Insert gives an open module file to the kernel, with the module's parameters.
type Insert func(file *os.File, params string) error

// Error says which module could not be loaded, and why.
type Error struct {
	Module string
	Err    error
}

// Error names a module that is needed after the one that needs it.
func (e *Error) Error() string { return "module " + e.Module + ": " + e.Err.Error() }

func (e *Error) Unwrap() error { return e.Err }

// ErrUnknown is the reason when a directory has no module of that name or alias.
const ErrUnknown = unknown("the image has no such module")

type unknown string

func (u unknown) Error() string { return string(u) }

// Open makes a loader for a modules directory, /lib/modules/RELEASE. Words “module.parameter=value” of the
// kernel command line become parameters of that module, as modprobe does it. insert is Finit but in tests.
func Open(dir, cmdline string, insert Insert) (*Loader, error) {
	index, err := Read(dir)
	if err != nil {
		return nil, err
	}
	l := &Loader{
		dir: dir, index: index, params: params(cmdline), insert: insert,
		files: map[string]Module{}, builtin: map[string]bool{}, tried: map[string]error{}, seen: map[string]bool{},
	}
	for _, m := range index.Modules {
		l.files[Name(m.Path)] = m
	}
	for _, path := range index.Builtin {
		l.builtin[Name(path)] = true
	}
	for _, aliases := range [][]Alias{l.index.Aliases, l.index.BuiltinAliases} {
		for i := range aliases {
			aliases[i].Pattern = canonical(aliases[i].Pattern)
		}
	}
	return l, nil
}

// Devices loads the modules of all devices below sys (/sys), and again until no new device comes of it:
// virtio_pci, say, makes the device that virtio_net is for. It returns the modules that it loaded in order,
// what they need among them, and an Error for each that failed, which keeps no other from loading. Devices
// that come later by themselves, disks say, are found when it is called again.
func (l *Loader) Devices(sys string) (loaded []string, errs []error) {
	before := len(l.loaded)
	for {
		fresh := l.fresh(sys)
		if len(fresh) == 0 {
			return slices.Clone(l.loaded[before:]), errs
		}
		for _, modalias := range fresh {
			for _, name := range l.aliased(modalias) {
				if _, again := l.tried[name]; again {
					continue
				}
				if err := l.load(name); err != nil {
					errs = append(errs, err)
				}
			}
		}
	}
}

// fresh are the modaliases of devices that were not there before.
func (l *Loader) fresh(sys string) (fresh []string) {
	for _, bus := range list(sys + "/bus") {
		for _, device := range list(bus + "/devices") {
			// A device may be gone by now, and most have no modalias.
			b, _ := os.ReadFile(device + "/modalias")
			modalias := strings.TrimSpace(string(b))
			if modalias != "" && !l.seen[modalias] {
				l.seen[modalias] = true
				fresh = append(fresh, modalias)
			}
		}
	}
	return fresh
}

// list is what is in a directory, in order; nothing when there is none.
func list(dir string) (paths []string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		paths = append(paths, dir+"/"+e.Name())
	}
	return paths
}

// Load loads a module, by name or alias ("squashfs", "fs-xfs"), after those that it needs. What is part of the
// kernel, or was loaded before, is no error; an alias of several modules asks for one of them. ErrUnknown
// is the reason when the directory has none.
func (l *Loader) Load(name string) error {
	names, builtin := l.lookup(name)
	err := error(&Error{name, ErrUnknown})
	for i, n := range names {
		if e := l.load(n); e == nil || i == 0 {
			err = e
		}
	}
	if builtin {
		return nil
	}
	return err
}

// lookup finds the modules of a name or an alias, and whether it is part of the kernel.
func (l *Loader) lookup(name string) (names []string, builtin bool) {
	plain := strings.ReplaceAll(name, "-", "_")
	if _, ok := l.files[plain]; ok {
		return []string{plain}, false
	}
	if l.builtin[plain] {
		return nil, true
	}
	names = l.aliased(name)
	for _, a := range l.index.BuiltinAliases {
		builtin = builtin || match(a.Pattern, canonical(name))
	}
	return names, builtin
}

// aliased are the modules that have an alias for this name, in the order of the index.
func (l *Loader) aliased(name string) (names []string) {
	name = canonical(name)
	for _, a := range l.index.Aliases {
		if match(a.Pattern, name) && !slices.Contains(names, a.Module) {
			names = append(names, a.Module)
		}
	}
	return names
}

// load loads one module, in modprobe's order: what it needs, what it would like before it, itself, and then
// what it would like after it.
func (l *Loader) load(name string) error {
	if err, again := l.tried[name]; again {
		return err
	}
	m, ok := l.files[name]
	if !ok {
		l.tried[name] = &Error{name, ErrUnknown}
		return l.tried[name]
	}
	l.tried[name] = nil
	for _, need := range slices.Backward(m.Needs) {
		if err := l.load(Name(need)); err != nil {
			l.tried[name] = &Error{name, err}
			return l.tried[name]
		}
	}
	l.soft(name, func(s Softdep) []string { return s.Pre })
	if err := l.insertFile(m.Path, l.params[name]); err != nil {
		l.tried[name] = &Error{name, err}
		return l.tried[name]
	}
	l.loaded = append(l.loaded, name)
	l.soft(name, func(s Softdep) []string { return s.Post })
	return nil
}

// soft loads what a module would like to have. Its failure is no failure of the module.
func (l *Loader) soft(name string, which func(Softdep) []string) {
	for _, s := range l.index.Softdeps {
		if s.Module != name {
			continue
		}
		for _, other := range which(s) {
			l.Load(other)
		}
	}
}

func (l *Loader) insertFile(path, params string) error {
	file, err := os.Open(l.dir + "/" + path)
	if err != nil {
		return err
	}
	defer file.Close()
	return l.insert(file, params)
}
