// Package nodeset selects cluster nodes by expressions that mean to it what they mean to
// ClusterShell 1.9 (nodeset(1)): a set of names, its folded text and its order are the same in both.
//
// A [Set] prints as an expression that parses to the same set. The syntax, blanks allowed around
// operators, numbers and commas but never inside a name:
//
//	n1                 one node
//	n[1-5,8]           ranges; n[08-12] is padded, and n1 and n01 are two nodes
//	n[0-10/2]          every second number
//	n1[2-3], n[1-2]0   digits beside a bracket belong to its numbers: n[12-13], n[10,20]
//	r[1-2]n[1-3]-ib0   several dimensions, and a suffix
//	a,b a!b a&b a^b    union, difference, intersection, exclusive or; left to right, all equal
//	@gpu %gpu *        the nodes of a group, and all nodes, if [Parser.Group] knows them
//
// What else an operand may be, an address say, [Parser.Alias] knows.
//
// Names are kept as written, case too: letters, digits, '-', '_' and '.', 253 bytes at most.
//
// Where ClusterShell guesses, Parse refuses: a blank or another character in a name, the negative
// range n[-5-3], n[1-2-3] (which ClusterShell reads as -2 to 3), n[0-00], n[,1]0, wildcards such as
// n*. A number of more than 19 digits is text like any other, neither ranged nor folded.
package nodeset

import (
	"iter"
	"slices"
	"strings"
)

// Set is an immutable set of node names. The zero value is the empty set.
type Set struct {
	families []family // in the order of their keys
	size     int
}

// A family is the nodes whose names differ in their numbers only.
type family struct {
	key   string // the name with each number replaced by axisMark, as ClusterShell sorts them
	grid  *grid  // the numbers
	boxes []box  // the same numbers, folded
}

// Of returns the set of the given names, however many. The error is an [*Error] about the first
// name that is not one; brackets, operators and groups are not read.
func Of(names ...string) (Set, error) {
	b := bag{}
	var s splitter
	for _, name := range names {
		if at, msg := checkName(name); msg != "" {
			return Set{}, &Error{Expr: name, Offset: at, Msg: msg}
		}
		key, axes := s.split(name)
		b.push(key, newGrid(axes))
	}
	return b.set(), nil
}

// Len returns the number of nodes.
func (s Set) Len() int { return s.size }

// All yields the names in ClusterShell's order: by the text around the numbers, then by the length
// of the number, then by its value; in several dimensions, by folded block.
func (s Set) All() iter.Seq[string] {
	return func(yield func(string) bool) {
		var buf []byte
		for _, f := range s.families {
			texts := f.texts()
			for _, b := range f.boxes {
				if !b.names(buf[:0], texts, yield) {
					return
				}
			}
		}
	}
}

// Contains reports whether name is in the set.
func (s Set) Contains(name string) bool {
	if _, msg := checkName(name); msg != "" {
		return false // it could be a key: n%s
	}
	var sp splitter
	key, axes := sp.split(name)
	i, ok := slices.BinarySearchFunc(s.families, key, func(f family, key []byte) int {
		return strings.Compare(f.key, string(key))
	})
	return ok && s.families[i].grid.contains(axes)
}

// String returns the folded expression, the text that nodeset -f prints.
func (s Set) String() string {
	var buf []byte
	for _, f := range s.families {
		texts := f.texts()
		for _, b := range f.boxes {
			if len(buf) > 0 {
				buf = append(buf, ',')
			}
			buf = b.appendTo(buf, texts)
		}
	}
	return string(buf)
}

func newFamily(key string, g *grid) family { return family{key, g, fold(g)} }

// texts returns the text before, between and after the numbers: one more than there are axes.
func (f family) texts() []string { return strings.Split(f.key, axisMark) }
