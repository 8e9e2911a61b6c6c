package nodeset

import (
	"cmp"
	"slices"
	"sort"
)

// A span is the numbers lo to hi, each written with width digits. An index is its digits, so 1 and
// 01 differ and 08-12 is one span; 8-12 is two, 8-9 and 10-12.
type span struct {
	width  int
	lo, hi uint64
}

// before orders spans as ClusterShell orders indexes: by length, then by value.
func (s span) before(t span) bool {
	return s.width < t.width || s.width == t.width && s.hi < t.lo
}

// meets reports whether t starts where s ends.
func (s span) meets(t span) bool { return s.width == t.width && s.hi+1 == t.lo }

func (s span) len() int { return int(s.hi - s.lo + 1) }

// A grid is a non-empty set of index vectors of one length: ordered, disjoint segments of the first
// index, each with the grid of the indexes that follow. Neighbours that could be one segment are
// one, so equal sets are equal grids. Grids are never changed once made, and share their tails.
type grid struct {
	segments []segment
	size     int // vectors
}

type segment struct {
	span
	tail *grid
}

// unit is the grid of no dimension: it holds the empty vector. The empty set is the nil grid.
var unit = &grid{size: 1}

// newGrid returns the product of the axes.
func newGrid(axes [][]span) *grid {
	g := unit
	for _, spans := range slices.Backward(axes) {
		head := &grid{segments: make([]segment, 0, len(spans))}
		for _, s := range spans {
			head.add(s, g)
		}
		g = head
	}
	return g
}

// add appends a segment that comes after all others; a nil tail adds nothing.
func (g *grid) add(s span, tail *grid) {
	if tail == nil {
		return
	}
	g.size += s.len() * tail.size
	if n := len(g.segments); n > 0 {
		if last := &g.segments[n-1]; last.meets(s) && last.tail.equal(tail) {
			last.hi = s.hi
			return
		}
	}
	g.segments = append(g.segments, segment{s, tail})
}

func (g *grid) equal(h *grid) bool {
	if g == h {
		return true
	}
	return g.size == h.size && slices.EqualFunc(g.segments, h.segments, func(a, b segment) bool {
		return a.span == b.span && a.tail.equal(b.tail)
	})
}

// contains reports whether the grid holds the vector, given as axes of one number.
func (g *grid) contains(axes [][]span) bool {
	for _, axis := range axes {
		i, ok := slices.BinarySearchFunc(g.segments, axis[0], func(s segment, x span) int {
			switch {
			case s.before(x):
				return -1
			case x.before(s.span):
				return 1
			}
			return 0
		})
		if !ok {
			return false
		}
		g = g.segments[i].tail
	}
	return true
}

// An operator makes one set of two.
type operator byte

const (
	union        operator = ','
	difference   operator = '!'
	intersection operator = '&'
	exclusiveOr  operator = '^'
)

// alone returns what the operator leaves where only one of the two sets has something.
func (op operator) alone(left, right *grid) *grid {
	if op == intersection || op == difference && left == nil {
		return nil
	}
	return cmp.Or(left, right)
}

// both returns what the operator leaves of a vector that is in both sets.
func (op operator) both() *grid {
	if op == difference || op == exclusiveOr {
		return nil
	}
	return unit
}

// apply combines two grids of the same dimension in one sweep over their segments.
func (op operator) apply(a, b *grid) *grid {
	switch {
	case a == nil || b == nil:
		return op.alone(a, b)
	case a == unit:
		return op.both()
	}
	out := &grid{segments: make([]segment, 0, len(a.segments)+len(b.segments))}
	left, right := sweep{rest: a.segments}, sweep{rest: b.segments}
	if before := a.before(b.segments[0].span); op != intersection {
		out.copy(before)
		left.rest = left.rest[len(before):]
	}
	left.advance()
	right.advance()
	for right.more {
		s, x, y := nextCell(&left, &right)
		out.add(s, op.apply(x, y))
	}
	if left.more && op != intersection {
		out.add(left.span, left.tail)
		out.copy(left.rest)
	}
	if out.size == 0 {
		return nil
	}
	return out
}

// before returns the segments that end before s starts. What an operand does not touch is copied,
// not swept: a long chain of ! or ^ then takes half the time.
func (g *grid) before(s span) []segment {
	n := sort.Search(len(g.segments), func(i int) bool { return !g.segments[i].before(s) })
	return g.segments[:n]
}

// copy appends segments of another grid that come after all others and touch none.
func (g *grid) copy(segments []segment) {
	for i := range segments {
		g.size += segments[i].len() * segments[i].tail.size
	}
	g.segments = append(g.segments, segments...)
}

// A sweep walks over segments and gives them away piece by piece.
type sweep struct {
	segment
	more bool
	rest []segment
}

func (w *sweep) advance() {
	if w.more = len(w.rest) > 0; w.more {
		w.segment, w.rest = w.rest[0], w.rest[1:]
	}
}

// take gives away the indexes up to hi.
func (w *sweep) take(hi uint64) (span, *grid) {
	s, tail := span{w.width, w.lo, hi}, w.tail
	if hi == w.hi {
		w.advance()
	} else {
		w.lo = hi + 1
	}
	return s, tail
}

// nextCell takes the next indexes that have one tail, or none, on each side.
func nextCell(a, b *sweep) (s span, left, right *grid) {
	switch {
	case !b.more || a.more && a.before(b.span):
		s, left = a.take(a.hi)
	case !a.more || b.before(a.span):
		s, right = b.take(b.hi)
	case a.lo < b.lo:
		s, left = a.take(b.lo - 1)
	case b.lo < a.lo:
		s, right = b.take(a.lo - 1)
	default:
		hi := min(a.hi, b.hi)
		s, left = a.take(hi)
		_, right = b.take(hi)
	}
	return s, left, right
}

// normalize sorts spans and joins those that touch or overlap.
func normalize(spans []span) []span {
	slices.SortFunc(spans, func(s, t span) int {
		return cmp.Or(cmp.Compare(s.width, t.width), cmp.Compare(s.lo, t.lo))
	})
	out := spans[:0]
	for _, s := range spans {
		if n := len(out); n > 0 && !(out[n-1].before(s) && !out[n-1].meets(s)) {
			out[n-1].hi = max(out[n-1].hi, s.hi)
			continue
		}
		out = append(out, s)
	}
	return out
}

// count returns how many numbers normalized spans hold.
func count(spans []span) int {
	n := 0
	for _, s := range spans {
		n += s.len()
	}
	return n
}
