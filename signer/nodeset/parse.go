package nodeset

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// DefaultMax is the limit of a [Parser] that sets none.
const DefaultMax = 1 << 17

// Parser reads expressions. The zero value knows no groups.
type Parser struct {
	// Group returns the nodes of a group, named as in the expression without its first character:
	// "gpu" for @gpu and %gpu, "src:gpu" for @src:gpu, "*" for *, @* and %*. Its error becomes
	// the message of the [*Error] and is in that error's chain.
	Group func(name string) (Set, error)

	// Alias returns the nodes that an operand stands for which is no node's name, as an address: known is
	// false where it is read as usual. It gets the text up to the next operator or blank. Its error
	// is treated as Group's. Nil: there are none.
	Alias func(text string) (nodes Set, known bool, err error)

	// Max is the number of nodes that an expression may select, and each of its operands; 0 is
	// DefaultMax. It is checked before memory is taken; what is united on the way to a smaller
	// result may pass it, but not twice over. The numbers that all steps together count out
	// (n[0-10/2] counts out six) have the same limit.
	Max int
}

// Parse parses by the zero [Parser].
func Parse(expr string) (Set, error) { return Parser{}.Parse(expr) }

// Parse returns the set that the expression selects; an empty expression selects none. The error is
// an [*Error], with [ErrTooMany] in its chain when the set is over the limit. Time grows with the
// expression and the set, but each !, & or ^ costs a copy of the family it changes: who takes
// expressions from strangers limits their length.
func (p Parser) Parse(expr string) (Set, error) {
	if p.Max == 0 {
		p.Max = DefaultMax
	}
	r := reader{Parser: p, expr: expr, bag: bag{}}
	if err := r.expression(); err != nil {
		return Set{}, err
	}
	return r.bag.set(), nil
}

// A reader evaluates one expression as it reads it.
type reader struct {
	Parser
	expr    string
	pos     int
	bag     bag
	names   splitter
	pushed  int // nodes put into the bag, counted twice if they are there twice
	stepped int // numbers counted out by steps
}

func (r *reader) fail(at int, msg string) error {
	return &Error{Expr: r.expr, Offset: at, Msg: msg}
}

func (r *reader) failf(at int, format string, args ...any) error {
	return r.fail(at, fmt.Sprintf(format, args...))
}

func (r *reader) tooMany(at int) error {
	return &Error{Expr: r.expr, Offset: at, Msg: fmt.Sprintf("more than %d nodes", r.Max), err: ErrTooMany}
}

// peek returns the next byte, 0 at the end. A zero byte in the expression is refused wherever it
// may stand, so it need not be told from the end.
func (r *reader) peek() byte {
	if r.pos == len(r.expr) {
		return 0
	}
	return r.expr[r.pos]
}

// skip steps over c, if it is next.
func (r *reader) skip(c byte) bool {
	if r.peek() != c {
		return false
	}
	r.pos++
	return true
}

func (r *reader) blanks() {
	for r.pos < len(r.expr) && isBlank(r.expr[r.pos]) {
		r.pos++
	}
}

func isBlank(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }

func (r *reader) digits() string {
	n := digits(r.expr[r.pos:])
	r.pos += n
	return r.expr[r.pos-n : r.pos]
}

// expression = [ operand { operator operand } ]
func (r *reader) expression() error {
	r.blanks()
	if r.pos == len(r.expr) {
		return nil
	}
	for op := union; ; {
		start := r.pos
		if err := r.operand(op); err != nil {
			return err
		}
		if err := r.checkSize(start, 2*r.Max); err != nil {
			return err
		}
		end := r.pos
		r.blanks()
		if r.pos == len(r.expr) {
			return r.checkSize(start, r.Max)
		}
		if !isOperator(r.peek()) {
			return r.misplaced(end)
		}
		op = operator(r.peek())
		r.pos++
		r.blanks()
	}
}

// misplaced says why something follows the operand that ends there.
func (r *reader) misplaced(end int) error {
	if end < r.pos {
		return r.fail(end, badCharacter(" "))
	}
	return r.fail(end, "an operator is missing here")
}

// checkSize counts the bag if more than slack nodes were pushed. Counting is exact but visits all
// families, so within an expression it is done only when the bag may have doubled.
func (r *reader) checkSize(at, slack int) error {
	if r.pushed <= slack {
		return nil
	}
	if r.pushed = r.bag.size(); r.pushed > r.Max {
		return r.tooMany(at)
	}
	return nil
}

func isOperator(c byte) bool {
	return c == byte(union) || c == byte(difference) || c == byte(intersection) || c == byte(exclusiveOr)
}

// operand = group | alias | nodes
func (r *reader) operand(op operator) error {
	start := r.pos
	if known, err := r.alias(op); known || err != nil {
		return err
	}
	switch c := r.peek(); {
	case c == '@' || c == '%' || c == '*':
		return r.group(op)
	case r.pos == len(r.expr) || isOperator(c):
		return r.fail(start, "a node name is missing here")
	}
	if err := r.nodes(""); err != nil {
		return err
	}
	g, err := r.product(start)
	if err != nil {
		return err
	}
	r.pushed += g.size
	if op == union {
		r.bag.push(r.names.key, g)
	} else {
		r.bag.apply(op, []family{{key: string(r.names.key), grid: g}})
	}
	return nil
}

// nodes = { text | number | [ number ] bracket [ number ] }, into r.names. Text may hold the
// characters in extra too.
func (r *reader) nodes(extra string) error {
	r.names.reset()
	for r.pos < len(r.expr) {
		lead, at := r.digits(), r.pos
		switch c := r.peek(); {
		case r.skip('['):
			spans, err := r.bracket(lead)
			if err != nil {
				return err
			}
			r.names.axis(spans)
		case lead != "":
			r.names.number(lead)
		case isText(c) || c != 0 && strings.IndexByte(extra, c) >= 0:
			r.names.key = append(r.names.key, c)
			r.pos++
		case !isOperator(c) && !isBlank(c):
			return r.fail(at, badCharacter(r.expr[at:]))
		default:
			return nil
		}
	}
	return nil
}

// product returns the grid of r.names, unless it or its names are too large.
func (r *reader) product(start int) (*grid, error) {
	if r.names.longest() > maxName {
		return nil, r.fail(start, tooLong)
	}
	size := 1
	for _, spans := range r.names.axes {
		n := count(spans)
		if n > r.Max/size {
			return nil, r.tooMany(start)
		}
		size *= n
	}
	return newGrid(r.names.axes), nil
}

// alias reads an operand that Parser.Alias knows.
func (r *reader) alias(op operator) (known bool, err error) {
	text := r.expr[r.pos:]
	if end := strings.IndexFunc(text, func(c rune) bool { return c < utf8.RuneSelf && (isOperator(byte(c)) || isBlank(byte(c))) }); end >= 0 {
		text = text[:end]
	}
	if r.Alias == nil || text == "" {
		return false, nil
	}
	s, known, err := r.Alias(text)
	if err != nil {
		return false, &Error{Expr: r.expr, Offset: r.pos, Msg: err.Error(), err: err}
	}
	if !known {
		return false, nil
	}
	r.pos += len(text)
	r.pushed += s.size
	r.bag.apply(op, s.families)
	return true, nil
}

// group = "*" | ( "@" | "%" ) nodes; the nodes are the names of groups.
func (r *reader) group(op operator) error {
	start := r.pos
	if r.Group == nil {
		return r.fail(start, "groups: not known to this head")
	}
	names, err := r.groupNames()
	if err != nil {
		return err
	}
	nodes := bag{}
	for name := range names.All() {
		s, err := r.Group(name)
		if err != nil {
			return &Error{Expr: r.expr, Offset: start, Msg: err.Error(), err: err}
		}
		if r.pushed += s.size; s.size > r.Max {
			return r.tooMany(start)
		}
		nodes.apply(union, s.families)
	}
	r.bag.apply(op, nodes.families())
	return nil
}

func (r *reader) groupNames() (Set, error) {
	if r.skip('*') {
		return Set{families: []family{newFamily("*", unit)}}, nil
	}
	r.pos++
	start := r.pos
	if err := r.nodes(":*"); err != nil {
		return Set{}, err
	}
	if r.pos == start {
		return Set{}, r.fail(start, "a group name is missing here")
	}
	g, err := r.product(start)
	if err != nil {
		return Set{}, err
	}
	return Set{families: []family{newFamily(string(r.names.key), g)}}, nil
}
