package nodeset

import (
	"iter"
	"slices"
	"strconv"
)

// An index is one number of a name: its digits.
type index struct {
	width int
	value uint64
}

func (s span) first() index { return index{s.width, s.lo} }
func (s span) last() index  { return index{s.width, s.hi} }

func (x index) text() string { return string(x.appendTo(nil)) }

func (x index) appendTo(buf []byte) []byte {
	var digits [20]byte
	text := strconv.AppendUint(digits[:0], x.value, 10)
	for range x.width - len(text) {
		buf = append(buf, '0')
	}
	return append(buf, text...)
}

// padded reports whether the index starts with a zero that its value does not need.
func (x index) padded() bool { return x.width > 1 && x.value < pow10(x.width-1) }

// runs yields the first and last index of each range that ClusterShell prints for the spans
// (RangeSet._slices_padding): consecutive values, where a padded range keeps to one length and one
// that is not padded may grow (8-12). A range that begins after a lone number, with no change of
// padding, counts as padded if that number did: hence 08,10-99,100.
func runs(spans []span) iter.Seq2[index, index] {
	return func(yield func(lo, hi index) bool) {
		var lo, hi, mode index
		for i, s := range spans {
			x := s.first()
			breaks := x.padded()
			if mode.padded() {
				breaks = x.width != mode.width
			}
			switch {
			case i == 0:
				mode = x
			case !breaks && x.value == hi.value+1:
				hi = s.last()
				continue
			case !yield(lo, hi):
				return
			case breaks || lo != hi:
				mode = x
			}
			lo, hi = x, s.last()
		}
		if len(spans) > 0 {
			yield(lo, hi)
		}
	}
}

// A box is the product of its axes, each normalized spans: one item of a folded expression.
type box [][]span

// appendTo appends the box as text; texts are what stands around its axes.
func (b box) appendTo(buf []byte, texts []string) []byte {
	buf = append(buf, texts[0]...)
	for i, spans := range b {
		buf = appendAxis(buf, spans)
		buf = append(buf, texts[i+1]...)
	}
	return buf
}

func appendAxis(buf []byte, spans []span) []byte {
	if spans[0].first() == spans[len(spans)-1].last() {
		return spans[0].first().appendTo(buf)
	}
	mark := byte('[')
	for lo, hi := range runs(spans) {
		buf = lo.appendTo(append(buf, mark))
		if lo != hi {
			buf = hi.appendTo(append(buf, '-'))
		}
		mark = ','
	}
	return append(buf, ']')
}

// names yields the names in the box, the last axis fastest, each after prefix and the texts; it
// reports whether yield wants more.
func (b box) names(prefix []byte, texts []string, yield func(string) bool) bool {
	prefix = append(prefix, texts[0]...)
	if len(b) == 0 {
		return yield(string(prefix))
	}
	for _, s := range b[0] {
		for v := s.lo; v <= s.hi; v++ {
			if !b[1:].names(index{s.width, v}.appendTo(prefix), texts[1:], yield) {
				return false
			}
		}
	}
	return true
}

// fold returns boxes that make up the grid, as ClusterShell chooses and orders them.
func fold(g *grid) []box {
	if b, ok := g.box(); ok {
		return []box{b}
	}
	return newMerger(g).boxes()
}

// box returns the grid as one box, if it is one.
func (g *grid) box() (b box, ok bool) {
	for g != unit {
		spans := make([]span, len(g.segments))
		for i, s := range g.segments {
			if !s.tail.equal(g.segments[0].tail) {
				return nil, false
			}
			spans[i] = s.span
		}
		b, g = append(b, spans), g.segments[0].tail
	}
	return b, true
}

// vectors yields every vector of the grid, in a slice that is good until the next.
func (g *grid) vectors() iter.Seq[[]index] {
	return func(yield func([]index) bool) { g.extend(nil, yield) }
}

func (g *grid) extend(v []index, yield func([]index) bool) bool {
	if g == unit {
		return yield(v)
	}
	for _, s := range g.segments {
		for value := s.lo; value <= s.hi; value++ {
			if !s.tail.extend(append(v, index{s.width, value}), yield) {
				return false
			}
		}
	}
	return true
}

// unite returns the union of several axes, normalized.
func unite(axes ...[]span) []span { return normalize(slices.Concat(axes...)) }
