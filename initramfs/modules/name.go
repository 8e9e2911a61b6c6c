package modules

import (
	"path"
	"strings"
)

// Name is the name of the module in a file: the last element of its path up to the first dot, with "_" for
// "-", which are the same in names of modules.
func Name(file string) string {
	base, _, _ := strings.Cut(path.Base(file), ".")
	return strings.ReplaceAll(base, "-", "_")
}

// Match reports whether an alias's pattern fits a modalias or another name, as fnmatch(3) does when kmod asks
// it: "*" crosses "/", "-" and "_" are the same except between brackets, and a pattern that is none fits nothing.
func Match(pattern, name string) bool {
	return match(canonical(pattern), canonical(name))
}

// match is Match for what is in canonical form.
func match(pattern, name string) bool {
	// Nearly all patterns differ from nearly all names in the first bytes.
	literal := strings.IndexAny(pattern, `*?[\`)
	if literal < 0 {
		return pattern == name
	}
	if !strings.HasPrefix(name, pattern[:literal]) {
		return false
	}
	ok, _ := path.Match(pattern, name)
	return ok
}

// canonical writes "_" for "-" outside of brackets, and NUL for "/", at which path.Match's "*" would stop.
func canonical(s string) string {
	inside := false
	return strings.Map(func(r rune) rune {
		switch {
		case r == '[':
			inside = true
		case r == ']':
			inside = false
		case r == '-' && !inside:
			return '_'
		case r == '/':
			return 0
		}
		return r
	}, s)
}
