package main

import (
	"regexp"
	"slices"
	"testing"
)

// TestWrap: lines break between words; only a word that fills most of a line is cut.
func TestWrap(t *testing.T) {
	for _, c := range []struct {
		line string
		want []string
	}{
		{"short", []string{"short"}},
		{"the node is switched off", []string{"the node is", "  switched", "  off"}},
		{"aaaaaaaaaaaaaaaa b", []string{"aaaaaaaaaaaa", "  aaaa b"}},
		{"exactly  12 !", []string{"exactly  12", "  !"}},
		{"", []string{""}},
	} {
		if got := wrap([]string{c.line}, 12); !slices.Equal(got, c.want) {
			t.Errorf("%q: %q", c.line, got)
		}
	}
}

// TestUntil: what comes after the last line of interest is not shown.
func TestUntil(t *testing.T) {
	lines := []string{"a", "enrolled at b", "switching off"}
	s := &shown{last: regexp.MustCompile("enrolled at .*")}
	if got := s.until(lines); !slices.Equal(got, lines[:2]) {
		t.Errorf("%q", got)
	}
	if got := s.until(lines[:1]); !slices.Equal(got, lines[:1]) {
		t.Errorf("%q", got)
	}
	if got := (&shown{}).until(lines); !slices.Equal(got, lines) {
		t.Errorf("%q", got)
	}
}
