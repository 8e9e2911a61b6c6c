// Package selector decides whether a node fits an expression over what is on record of it, as
// ClusterWare's --selector does:
//
//	status[state] == active and not %gpu
//	(n[name] == n7 or n[ip] == 10.0.0.7) and s[expires] < 2027-01-01
//
// An operand is CLASS[FIELD]; classes have short forms, n for node and s for status. The operators are
// == != < <= > >=, and, or, not and parentheses; %GROUP (or @GROUP) is whether the node belongs to
// a group. A value stands in quotes where it has blanks or parentheses in it. Letters' case does not
// matter. All is compared as text, which orders times too: they are RFC 3339 in UTC. Of a field with several values one that fits is enough; != is true where none
// is equal.
package selector

import (
	"fmt"
	"slices"
	"strings"
)

// Fields are the operands that there are, each with its class.
var Fields = []string{
	"node[name]", "node[mac]", "node[uuid]", "node[ip]", "node[dns]", "node[ek]",
	"status[state]", "status[level]", "status[serial]", "status[issued]", "status[expires]",
}

// Expr is an expression that was read.
type Expr struct {
	root   match
	groups []string
}

// match decides about a node, whose values values gives; those of "%" are its groups.
type match func(values func(field string) []string) bool

// Groups are the groups that the expression names.
func (e *Expr) Groups() []string { return e.groups }

// Match says whether a node fits. values gives those of one of [Fields]; of "%", the node's groups.
func (e *Expr) Match(values func(field string) []string) bool { return e.root(values) }

// Error says what is wrong with an expression, and where.
type Error struct {
	Expr   string
	Offset int // in bytes
	Msg    string
}

func (e *Error) Error() string {
	return fmt.Sprintf("selector %.80q, column %d: %s", e.Expr, e.Offset+1, e.Msg)
}

// Bounds on an expression.
const (
	maxExpr  = 16 << 10
	maxDepth = 64
)

// Parse reads an expression; its errors are [*Error].
func Parse(expr string) (*Expr, error) {
	p := &parser{expr: expr}
	if len(expr) > maxExpr {
		return nil, &Error{Expr: expr, Msg: fmt.Sprintf("more than %d bytes", maxExpr)}
	}
	root, err := p.or(0)
	if err == nil && p.next() != "" {
		err = p.wrong("%q, where and, or or the end should be", p.next())
	}
	if err != nil {
		return nil, err
	}
	return &Expr{root, p.groups}, nil
}

type parser struct {
	expr   string
	pos    int
	groups []string
}

func (p *parser) wrong(format string, args ...any) error {
	return &Error{Expr: p.expr, Offset: p.pos, Msg: fmt.Sprintf(format, args...)}
}

const (
	blanks  = " \t\r\n"
	symbols = "()=!<>"
)

// next is the token that comes, and "" at the end. It stays.
func (p *parser) next() string {
	p.pos += len(p.expr[p.pos:]) - len(strings.TrimLeft(p.expr[p.pos:], blanks))
	rest := p.expr[p.pos:]
	if rest == "" {
		return ""
	}
	switch c := rest[0]; {
	case c == '"' || c == '\'':
		if end := strings.IndexByte(rest[1:], c); end >= 0 {
			return rest[:end+2]
		}
		return rest
	case c == '(' || c == ')':
		return rest[:1]
	case strings.IndexByte(symbols, c) >= 0:
		return rest[:len(rest)-len(strings.TrimLeft(rest, "=!<>"))]
	}
	if end := strings.IndexAny(rest, blanks+symbols); end >= 0 {
		return rest[:end]
	}
	return rest
}

// take steps over the token that comes, if it is want.
func (p *parser) take(want string) bool {
	token := p.next()
	if !strings.EqualFold(token, want) {
		return false
	}
	p.pos += len(token)
	return true
}

func (p *parser) or(depth int) (match, error) {
	left, err := p.and(depth)
	for err == nil && p.take("or") {
		var right match
		a := left
		right, err = p.and(depth)
		left = func(v func(string) []string) bool { return a(v) || right(v) }
	}
	return left, err
}

func (p *parser) and(depth int) (match, error) {
	left, err := p.not(depth)
	for err == nil && p.take("and") {
		var right match
		a := left
		right, err = p.not(depth)
		left = func(v func(string) []string) bool { return a(v) && right(v) }
	}
	return left, err
}

func (p *parser) not(depth int) (match, error) {
	if depth > maxDepth {
		return nil, p.wrong("too deep")
	}
	if p.take("not") {
		m, err := p.not(depth + 1)
		return func(v func(string) []string) bool { return !m(v) }, err
	}
	if !p.take("(") {
		return p.test()
	}
	m, err := p.or(depth + 1)
	if err == nil && !p.take(")") {
		err = p.wrong("a closing parenthesis is missing here")
	}
	return m, err
}

// test = %group | operand operator value
func (p *parser) test() (match, error) {
	token := p.next()
	if group := strings.TrimLeft(token, "%@"); len(token)-len(group) == 1 && group != "" {
		p.pos += len(token)
		p.groups = append(p.groups, group)
		return func(v func(string) []string) bool { return slices.Contains(v("%"), group) }, nil
	}
	field, ok := operand(token)
	if !ok {
		return nil, p.wrong("%q is no operand; there are %%GROUP, %s", token, strings.Join(Fields, ", "))
	}
	p.pos += len(token)
	fits, ok := operators[p.next()]
	if !ok {
		return nil, p.wrong("one of == != < <= > >= is missing here")
	}
	negated := p.next() == "!="
	p.pos += len(p.next())
	value := p.next()
	if value == "" || strings.IndexByte(symbols, value[0]) >= 0 {
		return nil, p.wrong("a value is missing here")
	}
	if c := value[0]; c == '"' || c == '\'' {
		if len(value) < 2 || value[len(value)-1] != c {
			return nil, p.wrong("the quotes are not closed")
		}
		p.pos += len(value)
		value = value[1 : len(value)-1]
	} else {
		p.pos += len(value)
	}
	return func(v func(string) []string) bool {
		one := func(has string) bool { return fits(compare(has, value)) }
		return slices.ContainsFunc(v(field), one) != negated
	}, nil
}

// operators say what a comparison must give; != is what == is not.
var operators = map[string]func(int) bool{
	"==": func(c int) bool { return c == 0 },
	"!=": func(c int) bool { return c == 0 },
	"<":  func(c int) bool { return c < 0 },
	"<=": func(c int) bool { return c <= 0 },
	">":  func(c int) bool { return c > 0 },
	">=": func(c int) bool { return c >= 0 },
}

// operand returns one of Fields, whose class may be written short.
func operand(token string) (string, bool) {
	token = strings.ToLower(token)
	for short, class := range map[string]string{"n[": "node[", "s[": "status["} {
		if strings.HasPrefix(token, short) {
			token = class + token[len(short):]
		}
	}
	return token, slices.Contains(Fields, token)
}

// compare knows no numbers: of the operands none is one, and nodes 10, 010 and 1e1 are three.
func compare(a, b string) int { return strings.Compare(strings.ToLower(a), strings.ToLower(b)) }
