// Package modules loads the kernel modules that a boot image has for the machine that it runs on: those of
// the devices that are there, and those asked for by name, each after the modules that it needs.
//
// The image's directory lib/modules/RELEASE is laid out as depmod(8) leaves one, in depmod's text files, so
// that other programs find their way in it too: busybox and u-root as it stands, kmod's modprobe once depmod
// has run over it. Package choose makes it. What is here goes into an image that is sent to every node at
// every boot: it links nothing but os, path, strings and the system calls.
package modules

import (
	"errors"
	"iter"
	"os"
	"strings"
)

// Index is what the files of a modules directory say of its modules. Paths are relative to that directory.
type Index struct {
	Modules        []Module  // modules.dep
	Aliases        []Alias   // modules.alias
	Softdeps       []Softdep // modules.softdep
	Builtin        []string  // modules.builtin: paths of modules that are part of the kernel
	BuiltinAliases []Alias   // their aliases in modules.builtin.modinfo
}

// Module is a file and the files of all modules that it needs, directly or not. As depmod writes them, each
// stands before those that it needs itself: they are loaded from the last to the first.
type Module struct {
	Path  string
	Needs []string
}

// Alias is another name of a module: a pattern of fnmatch(3) for the modaliases of the devices that it
// drives, or a plain word, "fs-xfs" say.
type Alias struct{ Pattern, Module string }

// Softdep names what a module can do without: modules or aliases to load before it and after it, if there.
type Softdep struct {
	Module    string
	Pre, Post []string
}

// The files of an index. Each may be absent but the first.
const (
	depFile            = "modules.dep"
	aliasFile          = "modules.alias"
	softdepFile        = "modules.softdep"
	builtinFile        = "modules.builtin"
	builtinModinfoFile = "modules.builtin.modinfo"
)

// Read reads the index of a modules directory, ours or one that depmod has been over.
func Read(dir string) (Index, error) {
	files := map[string]string{}
	for _, name := range []string{depFile, aliasFile, softdepFile, builtinFile, builtinModinfoFile} {
		b, err := os.ReadFile(dir + "/" + name)
		if err != nil && (name == depFile || !errors.Is(err, os.ErrNotExist)) {
			return Index{}, err
		}
		files[name] = string(b)
	}
	return Parse(files)
}

// Parse is the inverse of Format: it takes an index from the contents of its files, by name. An absent file
// is an empty one. It fails on a modules.dep that is none, with the line, and passes over in the others what
// it does not know, as kmod does.
func Parse(files map[string]string) (Index, error) {
	x := Index{
		Aliases:        parseAliases(files[aliasFile]),
		Softdeps:       parseSoftdeps(files[softdepFile]),
		BuiltinAliases: parseBuiltinAliases(files[builtinModinfoFile]),
	}
	for line := range lines(files[builtinFile]) {
		x.Builtin = append(x.Builtin, line)
	}
	for line := range lines(files[depFile]) {
		path, needs, ok := strings.Cut(line, ":")
		path = strings.TrimSpace(path)
		if !ok || len(strings.Fields(path)) != 1 {
			return Index{}, errors.New(depFile + " has a line that is not “file: files”: " + line)
		}
		x.Modules = append(x.Modules, Module{path, fields(needs)})
	}
	return x, nil
}

// Format returns the files of an index, by name.
func (x Index) Format() map[string]string {
	var dep, alias, softdep, builtin, modinfo strings.Builder
	for _, m := range x.Modules {
		dep.WriteString(m.Path + ":")
		for _, need := range m.Needs {
			dep.WriteString(" " + need)
		}
		dep.WriteString("\n")
	}
	for _, a := range x.Aliases {
		alias.WriteString("alias " + a.Pattern + " " + a.Module + "\n")
	}
	for _, s := range x.Softdeps {
		softdep.WriteString("softdep " + s.Module + section(" pre:", s.Pre) + section(" post:", s.Post) + "\n")
	}
	for _, path := range x.Builtin {
		builtin.WriteString(path + "\n")
	}
	for _, a := range x.BuiltinAliases {
		modinfo.WriteString(a.Module + ".alias=" + a.Pattern + "\x00")
	}
	return map[string]string{
		depFile:            dep.String(),
		aliasFile:          alias.String(),
		softdepFile:        softdep.String(),
		builtinFile:        builtin.String(),
		builtinModinfoFile: modinfo.String(),
	}
}

func section(keyword string, names []string) string {
	if len(names) == 0 {
		return ""
	}
	return keyword + " " + strings.Join(names, " ")
}

// parseAliases reads lines “alias PATTERN MODULE”. A pattern may have blanks.
func parseAliases(text string) (aliases []Alias) {
	for line := range lines(text) {
		rest, ok := strings.CutPrefix(line, "alias ")
		rest = strings.TrimSpace(rest)
		i := strings.LastIndexAny(rest, " \t")
		if !ok || i < 0 {
			continue
		}
		aliases = append(aliases, Alias{strings.TrimSpace(rest[:i]), rest[i+1:]})
	}
	return aliases
}

// parseSoftdeps reads lines “softdep MODULE [pre: NAMES] [post: NAMES]”.
func parseSoftdeps(text string) (softdeps []Softdep) {
	for line := range lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "softdep" {
			continue
		}
		s := ParseSoftdep(words[2:])
		s.Module = words[1]
		softdeps = append(softdeps, s)
	}
	return softdeps
}

// ParseSoftdep sorts the words behind a module's name in “softdep MODULE [pre: NAMES] [post: NAMES]”. Words
// before the first keyword mean nothing.
func ParseSoftdep(words []string) (s Softdep) {
	var to *[]string
	for _, word := range words {
		switch {
		case word == "pre:":
			to = &s.Pre
		case word == "post:":
			to = &s.Post
		case to != nil:
			*to = append(*to, word)
		}
	}
	return s
}

// parseBuiltinAliases reads “MODULE.alias=PATTERN” out of the strings that end in NUL.
func parseBuiltinAliases(text string) (aliases []Alias) {
	for s := range strings.SplitSeq(text, "\x00") {
		key, pattern, _ := strings.Cut(s, "=")
		if module, ok := strings.CutSuffix(key, ".alias"); ok && module != "" && pattern != "" {
			aliases = append(aliases, Alias{pattern, module})
		}
	}
	return aliases
}

// lines yields the lines of text that hold anything but a comment, without the blanks around them.
func lines(text string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for line := range strings.Lines(text) {
			line = strings.TrimSpace(line)
			if line != "" && line[0] != '#' && !yield(line) {
				return
			}
		}
	}
}

// fields is strings.Fields, with nil for none.
func fields(s string) []string {
	if f := strings.Fields(s); len(f) > 0 {
		return f
	}
	return nil
}
