package nodeset

import (
	"cmp"
	"encoding/binary"
	"hash/maphash"
	"slices"
	"sort"
)

// A merger folds a grid that is not one box. It takes ClusterShell's steps, since the result
// depends on them (RangeSetND._fold_multivariate): every vector starts as a block of its own; passes
// over the sorted blocks merge two that differ in one axis, first neighbours only, then any; until a
// pass changes nothing. ClusterShell compares all pairs; here the last passes find partners by hash.
type merger struct {
	axes   []axis         // each set of indexes that is or was an axis of a block
	known  map[string]int // the place in axes, by spans
	blocks []block        // disjoint
	seed   maphash.Seed
	buf    []byte
}

type axis struct {
	spans       []span
	size        int
	first, last string
}

type block struct {
	axes []int // places in merger.axes
	size int
}

func newMerger(g *grid) *merger {
	m := &merger{known: map[string]int{}, seed: maphash.MakeSeed()}
	m.blocks = make([]block, 0, g.size)
	for v := range g.vectors() {
		axes := make([]int, len(v))
		for i, x := range v {
			axes[i] = m.axis([]span{{x.width, x.value, x.value}})
		}
		m.blocks = append(m.blocks, block{axes, 1})
	}
	return m
}

// axis returns the place of the normalized spans in m.axes.
func (m *merger) axis(spans []span) int {
	m.buf = m.buf[:0]
	for _, s := range spans {
		m.buf = binary.AppendUvarint(m.buf, uint64(s.width))
		m.buf = binary.AppendUvarint(m.buf, s.lo)
		m.buf = binary.AppendUvarint(m.buf, s.hi)
	}
	i, ok := m.known[string(m.buf)]
	if !ok {
		i = len(m.axes)
		m.known[string(m.buf)] = i
		first, last := spans[0].first(), spans[len(spans)-1].last()
		m.axes = append(m.axes, axis{slices.Clone(spans), count(spans), first.text(), last.text()})
	}
	return i
}

// boxes merges all that can be merged.
func (m *merger) boxes() []box {
	for m.sort(); m.mergeNeighbours(); m.sort() {
	}
	for m.sort(); m.mergeAny(); m.sort() {
	}
	boxes := make([]box, len(m.blocks))
	for i, b := range m.blocks {
		for _, a := range b.axes {
			boxes[i] = append(boxes[i], m.axes[a].spans)
		}
	}
	return boxes
}

// sort puts large blocks first, then those with larger axes, then by the text of the ends.
func (m *merger) sort() {
	slices.SortStableFunc(m.blocks, func(b, c block) int {
		if b.size != c.size {
			return cmp.Compare(c.size, b.size)
		}
		for i := range b.axes {
			if b.axes[i] == c.axes[i] {
				continue
			}
			x, y := &m.axes[b.axes[i]], &m.axes[c.axes[i]]
			order := cmp.Or(cmp.Compare(y.size, x.size), cmp.Compare(x.first, y.first), cmp.Compare(x.last, y.last))
			if order != 0 {
				return order
			}
		}
		return 0
	})
}

// mergeNeighbours merges each block with those right after it, and reports whether it did.
func (m *merger) mergeNeighbours() bool {
	rest, merged := m.blocks, m.blocks[:0]
	for len(rest) > 0 {
		b := rest[0]
		n := 1
		for n < len(rest) {
			i := b.onlyDifference(rest[n])
			if i < 0 {
				break
			}
			// All that differ from b in the same axis are merged at once: one by one, a long row
			// would cost the square of its length.
			start := n
			for n < len(rest) && b.onlyDifference(rest[n]) == i {
				n++
			}
			b = m.merge(i, b, rest[start:n]...)
		}
		merged, rest = append(merged, b), rest[n:]
	}
	changed := len(merged) < len(m.blocks)
	m.blocks = merged
	return changed
}

// merge returns the union of blocks that differ in axis i only; b is not used again.
func (m *merger) merge(i int, b block, others ...block) block {
	spans := [][]span{m.axes[b.axes[i]].spans}
	for _, c := range others {
		spans = append(spans, m.axes[c.axes[i]].spans)
		b.size += c.size
	}
	b.axes[i] = m.axis(unite(spans...))
	return b
}

// onlyDifference returns the one axis in which two blocks differ, or -1.
func (b block) onlyDifference(c block) int {
	only := -1
	for i := range b.axes {
		if b.axes[i] != c.axes[i] {
			if only >= 0 {
				return -1
			}
			only = i
		}
	}
	return only
}

// mergeAny merges each block with any after it, nearest first, and reports whether it did.
func (m *merger) mergeAny() bool {
	partners := m.partners()
	gone := make([]bool, len(m.blocks))
	for i := range m.blocks {
		for near := i; !gone[i]; {
			j, axis := m.next(m.blocks[i], near, partners, gone)
			if axis < 0 {
				break
			}
			m.blocks[i] = m.merge(axis, m.blocks[i], m.blocks[j])
			gone[j], near = true, j
		}
	}
	i := -1
	before := len(m.blocks)
	m.blocks = slices.DeleteFunc(m.blocks, func(block) bool { i++; return gone[i] })
	return len(m.blocks) < before
}

// partners lists, in order, the blocks that agree in all axes but one, by the hash of that.
func (m *merger) partners() map[uint64][]int {
	partners := make(map[uint64][]int, len(m.blocks))
	for i, b := range m.blocks {
		for axis := range b.axes {
			h := m.hash(b, axis)
			partners[h] = append(partners[h], i)
		}
	}
	return partners
}

// next returns the nearest block after near that differs from b in one axis, and the axis, or -1.
func (m *merger) next(b block, near int, partners map[uint64][]int, gone []bool) (nearest, only int) {
	only = -1
	for axis := range b.axes {
		list := partners[m.hash(b, axis)]
		for _, j := range list[sort.SearchInts(list, near+1):] {
			if only >= 0 && j > nearest {
				break
			}
			if !gone[j] && b.onlyDifference(m.blocks[j]) == axis {
				nearest, only = j, axis
				break
			}
		}
	}
	return nearest, only
}

// hash covers all axes of the block but one, and which one.
func (m *merger) hash(b block, but int) uint64 {
	m.buf = binary.AppendUvarint(m.buf[:0], uint64(but))
	for i, a := range b.axes {
		if i != but {
			m.buf = binary.AppendUvarint(m.buf, uint64(a))
		}
	}
	return maphash.Bytes(m.seed, m.buf)
}
