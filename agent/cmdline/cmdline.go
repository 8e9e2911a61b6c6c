// Package cmdline reads the kernel command line: split as the kernel splits it, and our parameters for
// the stage of the boot that asks. Initramfs and system read the same line, and neither may obey what
// is meant for the other.
package cmdline

import (
	"maps"
	"slices"
	"strings"
)

// Word is one parameter of the kernel command line.
type Word struct {
	Name, Value string
	Set         bool // whether there was a "="
}

// Parse splits a kernel command line as the kernel does (lib/cmdline.c, next_arg): white space
// ends a word except between double quotes, and quotes around a value or around the whole word are
// not part of it. It accepts everything; a lone quote runs to the end of the line.
func Parse(line string) []Word {
	var words []Word
	for {
		line = strings.TrimLeft(line, space)
		if line == "" {
			return words
		}
		var w Word
		w, line = nextWord(line)
		words = append(words, w)
	}
}

const space = " \t\n\v\f\r"

// nextWord takes the first word off a line that does not begin with white space.
func nextWord(line string) (w Word, rest string) {
	line, quoted := strings.CutPrefix(line, `"`)
	inQuote, equals, end := quoted, 0, 0
	for ; end < len(line); end++ {
		c := line[end]
		if strings.IndexByte(space, c) >= 0 && !inQuote {
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
		return Word{Name: unquoteEnd(text, quoted)}, rest
	}
	value, valueQuoted := strings.CutPrefix(text[equals+1:], `"`)
	return Word{Name: text[:equals], Value: unquoteEnd(value, quoted || valueQuoted), Set: true}, rest
}

func unquoteEnd(s string, quoted bool) string {
	if quoted {
		return strings.TrimSuffix(s, `"`)
	}
	return s
}

// Format is the inverse of Parse for words that can be written at all: a name with
// neither "=" nor quote nor white space, and a value without a quote.
func Format(words []Word) string {
	var b strings.Builder
	for i, w := range words {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(w.Name)
		if w.Set {
			b.WriteString(`="` + w.Value + `"`)
		}
	}
	return b.String()
}

// Stage is who reads the line.
type Stage int

// The stages of a boot.
const (
	System    Stage = iota // the system that is there to stay
	Initramfs              // what prepares it
)

// handover are the parameters of an initramfs's own end. No other program obeys them.
var handover = map[string]bool{
	"root": true, "image": true, "image-sha256": true, "exec": true, "fail": true, "shell": true,
}

// Agent returns the parameters of ours that are settings of the agent in a stage, without their prefix:
// "muster." is for both stages, "rd.muster." (as dracut has it) for the initramfs alone, where it comes
// last and so wins. As in the kernel's own parameters "-" and "_" are the same.
func Agent(line string, stage Stage) []Word {
	var ours []Word
	for _, w := range muster(line, stage) {
		if !handover[w.Name] {
			ours = append(ours, w)
		}
	}
	return ours
}

// Handover returns the parameters that say how an initramfs ends, by their names without prefix.
func Handover(line string) map[string]string {
	values := map[string]string{}
	for _, w := range muster(line, Initramfs) {
		if handover[w.Name] {
			values[w.Name] = w.Value
		}
	}
	return values
}

func muster(line string, stage Stage) []Word {
	var both, early []Word
	for _, w := range Parse(line) {
		switch prefix, rest := cut(w.Name); prefix {
		case "rd.muster.":
			early = append(early, Word{rest, w.Value, w.Set})
		case "muster.":
			both = append(both, Word{rest, w.Value, w.Set})
		}
	}
	if stage == System {
		return both
	}
	return append(both, early...)
}

// cut splits our prefix off a parameter's name; "" for one that is not ours.
func cut(name string) (prefix, rest string) {
	name = strings.ReplaceAll(name, "_", "-")
	for _, prefix := range []string{"rd.muster.", "muster."} {
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			return prefix, rest
		}
	}
	return "", name
}

// Unknown returns the parameters of ours, as they are written, that a stage does not know: neither the agent's
// settings nor an initramfs's end. Behind one that looks like a slip of the hand is what may have been meant.
func Unknown(line string, stage Stage, settings []string) []string {
	known := slices.Concat(settings, slices.Sorted(maps.Keys(handover)))
	var unknown []string
	for _, w := range Parse(line) {
		prefix, rest := cut(w.Name)
		if prefix == "" || prefix == "rd.muster." && stage == System || slices.Contains(known, rest) {
			continue
		}
		text := w.Name
		for _, name := range known {
			if len(rest) > 2 && distance(rest, name) <= 2 {
				text += " (" + prefix + name + "?)"
				break
			}
		}
		unknown = append(unknown, text)
	}
	return unknown
}

// distance is Levenshtein's: how many letters to put in, take out or change.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := before
			if a[i] != b[j] {
				change++
			}
			before = row[j+1]
			row[j+1] = min(change, row[j]+1, before+1)
		}
	}
	return row[len(b)]
}
