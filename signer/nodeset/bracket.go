package nodeset

import (
	"strconv"
	"unicode/utf8"
)

// An item is what stands between the commas of a bracket.
type item struct {
	lo, hi   string // digits; the same for a single number
	step     uint64
	at, over int  // offsets of the item and of its step's slash, -1 without one
	ranged   bool // lo-hi
}

// bracket = "[" item { "," item } "]" after its opening, with the digits that touch it on either
// side: n1[2-3]0 is n120 and n130. It returns normalized spans.
func (r *reader) bracket(lead string) ([]span, error) {
	open := r.pos - 1
	items, err := r.items(open)
	if err != nil {
		return nil, err
	}
	if trail := r.digits(); trail != "" {
		if err := r.appendDigits(items, trail); err != nil {
			return nil, err
		}
	}
	if r.peek() == '[' {
		return nil, r.fail(r.pos, "no text between two brackets")
	}
	spans, err := r.spans(items)
	if err != nil || lead == "" {
		return spans, err
	}
	return r.prepend(lead, spans, open)
}

// items reads up to the closing bracket.
func (r *reader) items(open int) ([]item, error) {
	var items []item
	for {
		r.blanks()
		it, err := r.item(open)
		if err != nil {
			return nil, err
		}
		items = append(items, it)
		r.blanks()
		switch {
		case r.skip(','):
		case r.skip(']'):
			return items, nil
		default:
			return nil, r.failInside(open)
		}
	}
}

// item = number [ "-" number ] [ "/" step ]
func (r *reader) item(open int) (it item, err error) {
	it.at, it.over, it.step = r.pos, -1, 1
	if it.lo = r.digits(); it.lo == "" {
		return it, r.failInside(open)
	}
	it.hi = it.lo
	r.blanks()
	if r.skip('-') {
		r.blanks()
		it.ranged = true
		if it.hi = r.digits(); it.hi == "" {
			return it, r.failInside(open)
		}
		r.blanks()
	}
	if r.peek() == '/' {
		it.over = r.pos
		r.pos++
		it.step, err = r.step(it.ranged)
	}
	return it, err
}

func (r *reader) step(ranged bool) (uint64, error) {
	r.blanks()
	at := r.pos
	step, err := strconv.ParseUint(r.digits(), 10, 64)
	switch {
	case err != nil || step == 0:
		return 0, r.fail(at, "a step of at least 1 is expected")
	case step != 1 && !ranged:
		return 0, r.fail(at, "a step without a range")
	}
	return step, nil
}

// failInside says why the next character cannot stand in the bracket.
func (r *reader) failInside(open int) error {
	switch c := r.peek(); {
	case r.pos == len(r.expr):
		return r.fail(open, "bracket is not closed")
	case c == ']' || c == ',':
		return r.fail(r.pos, "a number is missing here")
	}
	c, _ := utf8.DecodeRuneInString(r.expr[r.pos:])
	return r.failf(r.pos, "%q in a bracket, which holds numbers, ranges and commas", c)
}

// appendDigits adds the digits after the bracket to each number: [1-3]0 is 10-30/10.
func (r *reader) appendDigits(items []item, trail string) error {
	step := uint64(1)
	for range min(len(trail), maxDigits) {
		step *= 10
	}
	for i := range items {
		it := &items[i]
		if it.over >= 0 {
			return r.fail(it.over, "a step in a bracket before digits")
		}
		it.lo, it.hi = it.lo+trail, it.hi+trail
		if it.ranged {
			it.step = step
		}
	}
	return nil
}

// prepend adds the digits before the bracket to both ends of each folded range, as ClusterShell
// does: n1[8-12] is n18 to n112.
func (r *reader) prepend(lead string, spans []span, open int) ([]span, error) {
	var items []item
	for lo, hi := range runs(spans) {
		it := item{lo: lead + lo.text(), hi: lead + hi.text(), step: 1, at: open, ranged: lo != hi}
		items = append(items, it)
	}
	return r.spans(items)
}

// spans checks the items and returns their numbers, normalized.
func (r *reader) spans(items []item) ([]span, error) {
	spans := make([]span, 0, len(items))
	for _, it := range items {
		if msg := it.check(); msg != "" {
			return nil, r.fail(it.at, msg)
		}
		lo, hi := value(it.lo), value(it.hi)
		steps := (hi - lo) / it.step
		if steps >= uint64(r.Max) {
			return nil, r.tooMany(it.at)
		}
		if it.step > 1 {
			if r.stepped += int(steps) + 1; r.stepped > r.Max {
				return nil, r.tooMany(it.at)
			}
		}
		spans = it.appendTo(spans, lo, hi)
	}
	spans = normalize(spans)
	if count(spans) > r.Max {
		return nil, r.tooMany(items[0].at)
	}
	return spans, nil
}

func (it item) check() string {
	switch {
	case max(len(it.lo), len(it.hi)) > maxDigits:
		return "number of more than " + strconv.Itoa(maxDigits) + " digits"
	case (padded(it.lo) || padded(it.hi)) && len(it.lo) != len(it.hi):
		return "padding length mismatch: " + it.lo + "-" + it.hi
	case value(it.lo) > value(it.hi):
		return "range goes down: " + it.lo + "-" + it.hi
	}
	return ""
}

func padded(text string) bool { return len(text) > 1 && text[0] == '0' }

// value returns the number that at most maxDigits digits write.
func value(text string) uint64 {
	var v uint64
	for i := range len(text) {
		v = v*10 + uint64(text[i]-'0')
	}
	return v
}

// appendTo appends the item's numbers, lo to hi, in spans of one width.
func (it item) appendTo(spans []span, lo, hi uint64) []span {
	width := len(it.lo)
	for {
		for lo >= pow10(width) && width < maxDigits {
			width++
		}
		last := lo
		if it.step == 1 {
			last = min(hi, pow10(width)-1)
		}
		spans = append(spans, span{width, lo, last})
		if hi-last < it.step {
			return spans
		}
		lo = last + it.step
	}
}

// pow10 returns 10 to the n, for n up to maxDigits.
func pow10(n int) uint64 {
	v := uint64(1)
	for range n {
		v *= 10
	}
	return v
}
