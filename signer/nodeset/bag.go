package nodeset

import (
	"cmp"
	"slices"
)

// A bag is a set under construction: for each family, grids whose union it holds.
type bag map[string]*pile

// A pile is grids to be united, each larger than the one above it. Uniting only grids of similar
// size keeps a list of many nodes from costing the square of its length.
type pile []*grid

func (p *pile) push(g *grid) {
	for n := len(*p); n > 0 && (*p)[n-1].size <= g.size; n-- {
		g = union.apply((*p)[n-1], g)
		*p = (*p)[:n-1]
	}
	*p = append(*p, g)
}

// grid unites the pile; nil when it is empty.
func (p *pile) grid() *grid {
	var g *grid
	for _, h := range slices.Backward(*p) {
		g = union.apply(h, g)
	}
	*p = (*p)[:0]
	if g != nil {
		*p = append(*p, g)
	}
	return g
}

func (b bag) push(key []byte, g *grid) {
	p := b[string(key)]
	if p == nil {
		p = new(pile)
		b[string(key)] = p
	}
	p.push(g)
}

// apply changes the bag by an operator and its right operand.
func (b bag) apply(op operator, right []family) {
	if op == intersection {
		b.keep(right)
	}
	for _, f := range right {
		if op == union {
			b.push([]byte(f.key), f.grid)
			continue
		}
		p := b[f.key]
		if p == nil {
			p = new(pile)
			b[f.key] = p
		}
		g := op.apply(p.grid(), f.grid)
		*p = (*p)[:0]
		if g == nil {
			delete(b, f.key)
			continue
		}
		*p = append(*p, g)
	}
}

// keep drops the families that are not among the given ones.
func (b bag) keep(families []family) {
	keys := make(map[string]bool, len(families))
	for _, f := range families {
		keys[f.key] = true
	}
	for key := range b {
		if !keys[key] {
			delete(b, key)
		}
	}
}

// size returns the number of nodes.
func (b bag) size() int {
	n := 0
	for _, p := range b {
		n += p.grid().size
	}
	return n
}

// families returns what the bag holds, in no order and not folded.
func (b bag) families() []family {
	families := make([]family, 0, len(b))
	for key, p := range b {
		families = append(families, family{key: key, grid: p.grid()})
	}
	return families
}

// set folds what the bag holds.
func (b bag) set() Set {
	s := Set{families: b.families()}
	for i, f := range s.families {
		s.families[i] = newFamily(f.key, f.grid)
		s.size += f.grid.size
	}
	slices.SortFunc(s.families, func(f, g family) int { return cmp.Compare(f.key, g.key) })
	return s
}
