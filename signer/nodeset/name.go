package nodeset

import (
	"fmt"
	"unicode/utf8"
)

const (
	maxName   = 253 // a DNS name (RFC 1035 section 2.3.4, without the root)
	maxDigits = 19  // of a number that fits 64 bits whatever its digits

	// axisMark stands in a family's key for a number. It is ClusterShell's own, so that families
	// sort alike, and no name can hold it.
	axisMark = "%s"
)

// A splitter takes names apart; its buffers are used again for the next name.
type splitter struct {
	key  []byte
	axes [][]span
}

func (s *splitter) reset() { s.key, s.axes = s.key[:0], s.axes[:0] }

// split returns the key of the name's family and the name's numbers, both good until the next call.
func (s *splitter) split(name string) (key []byte, axes [][]span) {
	s.reset()
	for i := 0; i < len(name); {
		n := digits(name[i:])
		if n == 0 {
			s.key = append(s.key, name[i])
			n = 1
		} else {
			s.number(name[i : i+n])
		}
		i += n
	}
	return s.key, s.axes
}

// number adds the digits between two texts: an axis, or text when there are too many of them.
func (s *splitter) number(text string) {
	if len(text) > maxDigits {
		s.key = append(s.key, text...)
		return
	}
	v := value(text)
	s.axis([]span{{len(text), v, v}})
}

func (s *splitter) axis(spans []span) {
	s.key = append(s.key, axisMark...)
	s.axes = append(s.axes, spans)
}

// longest returns the length of the longest name that the key and the axes make.
func (s *splitter) longest() int {
	n := len(s.key) - len(s.axes)*len(axisMark)
	for _, spans := range s.axes {
		n += spans[len(spans)-1].width // the last is the widest
	}
	return n
}

// digits returns the number of digits that s starts with.
func digits(s string) int {
	n := 0
	for n < len(s) && isDigit(s[n]) {
		n++
	}
	return n
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// isText reports whether a name may hold c, digits apart.
func isText(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '-' || c == '_' || c == '.'
}

// checkName returns the message about the first thing wrong with a name and its place, or "".
func checkName(name string) (offset int, msg string) {
	for i := range len(name) {
		if !isDigit(name[i]) && !isText(name[i]) {
			return i, badCharacter(name[i:])
		}
	}
	switch {
	case name == "":
		return 0, "empty node name"
	case len(name) > maxName:
		return maxName, tooLong
	}
	return 0, ""
}

var tooLong = fmt.Sprintf("node name of more than %d bytes", maxName)

// badCharacter is the message about the character that rest starts with.
func badCharacter(rest string) string {
	switch r, _ := utf8.DecodeRuneInString(rest); r {
	case ' ', '\t', '\r', '\n':
		return "blank in a node name (a comma separates nodes)"
	case ']':
		return "closing bracket without an opening one"
	case '*', '?':
		return "wildcard in a node name (only * alone is known, for all nodes)"
	default:
		return fmt.Sprintf("character %q cannot be in a node name", r)
	}
}
