package main

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// printable is text that may come from elsewhere, as a terminal is to see it: what is not printable, escape sequences and
// ends of lines above all, stands as in a Go string.
func printable(text string) string {
	var b strings.Builder
	for len(text) > 0 {
		r, n := utf8.DecodeRuneInString(text)
		if strconv.IsPrint(r) && (r != utf8.RuneError || n > 1) {
			b.WriteString(text[:n])
		} else {
			q := strconv.Quote(text[:n])
			b.WriteString(q[1 : len(q)-1])
		}
		text = text[n:]
	}
	return b.String()
}

// printableLines is printable, but for the ends of lines.
func printableLines(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		lines[i] = printable(line)
	}
	return strings.Join(lines, "\n")
}

// field is what stands behind a key and =: in quotes, where it could be taken for more than it is.
func field(text string) string {
	if printable(text) != text || strings.ContainsAny(text, `="`) {
		return strconv.Quote(text)
	}
	return text
}
