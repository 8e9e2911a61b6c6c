package agent

import "strings"

// word is one parameter of the kernel command line.
type word struct {
	name, value string
	set         bool // whether there was a "="
}

// parseCmdline splits a kernel command line as the kernel does (lib/cmdline.c, next_arg): white space
// ends a word except between double quotes, and quotes around a value or around the whole word are
// not part of it. It accepts everything; a lone quote runs to the end of the line.
func parseCmdline(line string) []word {
	var words []word
	for {
		line = strings.TrimLeft(line, cmdlineSpace)
		if line == "" {
			return words
		}
		var w word
		w, line = nextWord(line)
		words = append(words, w)
	}
}

const cmdlineSpace = " \t\n\v\f\r"

// nextWord takes the first word off a line that does not begin with white space.
func nextWord(line string) (w word, rest string) {
	line, quoted := strings.CutPrefix(line, `"`)
	inQuote, equals, end := quoted, 0, 0
	for ; end < len(line); end++ {
		c := line[end]
		if strings.IndexByte(cmdlineSpace, c) >= 0 && !inQuote {
			break
		}
		if c == '=' && equals == 0 {
			equals = end // at 0 it counts as none, as in the kernel
		}
		if c == '"' {
			inQuote = !inQuote
		}
	}
	text, rest := line[:end], line[end:]
	if equals == 0 {
		return word{name: unquoteEnd(text, quoted)}, rest
	}
	value, valueQuoted := strings.CutPrefix(text[equals+1:], `"`)
	return word{name: text[:equals], value: unquoteEnd(value, quoted || valueQuoted), set: true}, rest
}

func unquoteEnd(s string, quoted bool) string {
	if quoted {
		return strings.TrimSuffix(s, `"`)
	}
	return s
}

// formatCmdline is the inverse of parseCmdline for words that can be written at all: a name with
// neither "=" nor quote nor white space, and a value without a quote.
func formatCmdline(words []word) string {
	var b strings.Builder
	for i, w := range words {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(w.name)
		if w.set {
			b.WriteString(`="` + w.value + `"`)
		}
	}
	return b.String()
}

// musterWords returns the parameters that begin with "muster.", without that prefix. As in the
// kernel's own parameters "-" and "_" are the same, and the last of several wins.
func musterWords(line string) []word {
	var ours []word
	for _, w := range parseCmdline(line) {
		if name, ok := strings.CutPrefix(w.name, "muster."); ok {
			w.name = strings.ReplaceAll(name, "_", "-")
			ours = append(ours, w)
		}
	}
	return ours
}
