package nodeset

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// ErrTooMany is in the chain of the error for an expression over the limit ([Parser.Max]).
var ErrTooMany = errors.New("too many nodes")

// Error says what is wrong with an expression, and where.
type Error struct {
	Expr   string
	Offset int // in bytes, from 0; len(Expr) when something is missing at the end
	Msg    string

	err error // what Unwrap returns: ErrTooMany or the error of Parser.Group
}

// Error returns one line: the message with the column, counted from 1, and the expression about it.
func (e *Error) Error() string {
	text, _ := e.excerpt()
	return fmt.Sprintf("nodeset %q, column %d: %s", text, e.Offset+1, e.Msg)
}

func (e *Error) Unwrap() error { return e.err }

// Caret returns two lines for a terminal, without a last newline: the expression (what surrounds
// the place, when it is long; unprintable characters as '?') and a caret under the wrong character.
func (e *Error) Caret() string {
	text, column := e.excerpt()
	return text + "\n" + strings.Repeat(" ", column) + "^"
}

// excerpt returns the text around the offset and the offset's column in it.
func (e *Error) excerpt() (text string, column int) {
	const around = 40
	before, after := printable(e.Expr[:e.Offset]), printable(e.Expr[e.Offset:])
	if len(before) > around {
		before = "..." + trimRunes(before[len(before)-around:])
	}
	if len(after) > around {
		after = strings.ToValidUTF8(after[:around], "") + "..."
	}
	return before + after, utf8.RuneCountInString(before)
}

// trimRunes drops the rest of a character that a cut left at the start of s.
func trimRunes(s string) string {
	for s != "" && !utf8.RuneStart(s[0]) {
		s = s[1:]
	}
	return s
}

func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
