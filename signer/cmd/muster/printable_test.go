package main

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"

	"muster/signer"
	"muster/signer/store"
)

const hostile = "x\x1b]0;owned\x07\r\x1b[2K\n   42  revoke n1\u009b31m\u202e\x9b\xff"

// TestNothingDrivesTheTerminal: whatever the head says is printed as text.
func TestNothingDrivesTheTerminal(t *testing.T) {
	for what, print := range map[string]func(*env){
		"log": func(e *env) {
			e.printEntry(store.Entry{Event: store.Event{Kind: hostile, Node: hostile, Fields: map[string]string{hostile: hostile, "file": hostile}}})
		},
		"status": func(e *env) {
			e.printStatus(&signer.StatusView{Cluster: hostile, Reason: hostile, Detail: hostile, Hint: hostile})
		},
		"show":     func(e *env) { e.printNode(signer.NodeView{Node: hostile, DNS: []string{hostile}}) },
		"table":    func(e *env) { e.printNodes([]signer.NodeView{{Node: hostile}}, "wide", certsShape) },
		"csv":      func(e *env) { e.printNodes([]signer.NodeView{{Node: hostile}}, "csv", certsShape) },
		"name":     func(e *env) { e.printNodes([]signer.NodeView{{Node: hostile}}, "name", certsShape) },
		"nodeset":  func(e *env) { e.printNodes([]signer.NodeView{{Node: hostile}}, "nodeset", certsShape) },
		"why":      func(e *env) { e.printWhy(&signer.WhyView{Sentence: hostile, Hint: hostile}) },
		"CA":       func(e *env) { e.printCA(&signer.CAView{Subject: hostile, CRL: hostile}) },
		"an error": func(e *env) { report(e.out, fail(exitFailed, hostile, "%s", hostile)) },
	} {
		var out bytes.Buffer
		print(&env{out: &out, err: &out})
		text := out.String()
		bad := strings.ContainsFunc(text, func(r rune) bool { return r != '\n' && printable(string(r)) != string(r) })
		if bad || !utf8.ValidString(text) || !strings.Contains(text, "owned") {
			t.Errorf("%s: got %q", what, text)
		}
		if forged := strings.Contains(text, "\n   42"); forged && what != "an error" {
			t.Errorf("%s has a line that is not its own: %q", what, text)
		}
	}
}

func TestPrintable(t *testing.T) {
	for text, want := range map[string]string{
		"n0 is well…, 1 µs, 節点 \\": "n0 is well…, 1 µs, 節点 \\",
		"a\tb\r\n\x00\x7f\u00a0":   `a\tb\r\n\x00\x7f\u00a0`,
		"\u202e\x80\ufffd":         `\u202e\x80` + "\ufffd",
	} {
		equalText(t, printable(text), want)
	}
	for text, want := range map[string]string{
		"uid 0 pid 1": "uid 0 pid 1", "": "", "nodes ek=0": `"nodes ek=0"`, `a"b`: `"a\"b"`, "a\x1bb": `"a\x1bb"`,
	} {
		equalText(t, field(text), want)
	}
	equalText(t, printableLines("a\n\x1b\n"), "a\n\\x1b\n")
}

func equalText(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
