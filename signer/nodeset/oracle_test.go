package nodeset

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// answer is what ClusterShell makes of an expression.
type answer struct {
	Error string   `json:"error"`
	Fold  string   `json:"fold"`
	Names []string `json:"names"`
}

// askClusterShell is what nodeset -f and nodeset -e do, without groups, for many expressions.
const askClusterShell = `
import json, sys
from ClusterShell.NodeSet import NodeSet, RESOLVER_NOGROUP
answers = []
for expr in json.load(sys.stdin):
    try:
        ns = NodeSet(expr, resolver=RESOLVER_NOGROUP)
        answers.append({"fold": str(ns), "names": list(ns)})
    except Exception as e:
        answers.append({"error": str(e) or repr(e)})
json.dump(answers, sys.stdout)
`

// nodesetCommand returns the path of ClusterShell's command.
func nodesetCommand(t *testing.T) string {
	path, err := exec.LookPath("nodeset")
	if err != nil && os.Getenv("CI") != "" {
		t.Fatalf("ClusterShell is the oracle of this test: %v", err)
	}
	if err != nil {
		t.Skipf("ClusterShell is the oracle of this test: %v (apt install clustershell)", err)
	}
	return path
}

// clusterShell asks in one process, of the interpreter that runs nodeset.
func clusterShell(t *testing.T, exprs []string) []answer {
	script, err := os.ReadFile(nodesetCommand(t))
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(script), "\n")
	interpreter := strings.Fields(strings.TrimPrefix(line, "#!"))
	in, err := json.Marshal(exprs)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(interpreter[0], append(interpreter[1:], "-c", askClusterShell)...)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var answers []answer
	if err := json.Unmarshal(out, &answers); err != nil {
		t.Fatal(err)
	}
	return answers
}

// A generator writes random expressions over few names, so that operands overlap.
type generator struct{ *rand.Rand }

func pick[T any](g generator, choices ...T) T { return choices[g.IntN(len(choices))] }

func (g generator) number() string {
	return fmt.Sprintf(pick(g, "%d", "%d", "%d", "%02d", "%03d"), pick(g, g.IntN(13), g.IntN(13), g.IntN(120)))
}

func (g generator) item() string {
	lo, hi := g.IntN(13), pick(g, g.IntN(13), g.IntN(13), g.IntN(13), 95+g.IntN(10))
	if lo > hi && g.IntN(20) > 0 {
		lo, hi = hi, lo
	}
	format := pick(g, "%d", "%d", "%02d", "%03d")
	text := fmt.Sprintf(format+pick(g, "-", "-", " - ")+format, lo, hi)
	if g.IntN(5) == 0 {
		text += fmt.Sprintf("/%d", 1+g.IntN(4))
	}
	return pick(g, text, text, g.number())
}

func (g generator) bracket() string {
	items := make([]string, 1+g.IntN(3))
	for i := range items {
		items[i] = g.item()
	}
	return "[" + strings.Join(items, pick(g, ",", ",", ", ")) + "]"
}

func (g generator) axis() string {
	switch g.IntN(8) {
	case 0:
		return pick(g, "0", "1") + fmt.Sprintf("[%d-%d,%d]", g.IntN(9), 9+g.IntN(3), g.IntN(12))
	case 1:
		return strings.ReplaceAll(g.bracket(), " ", "") + g.number()
	case 2, 3:
		return g.number()
	}
	return g.bracket()
}

func (g generator) operand() string {
	text := pick(g, "", "n", "n", "n", "Gpu-", "a.b_") + g.axis()
	if g.IntN(3) == 0 {
		text += pick(g, "i", "-ib") + g.axis()
	}
	if g.IntN(16) == 0 {
		text += fmt.Sprintf("c[%d,%d]", g.IntN(2), g.IntN(3))
	}
	return text + pick(g, "", "", "", "", "-ib0", "x")
}

func (g generator) expr() string {
	text := g.operand()
	for range g.IntN(6) {
		text += pick(g, ",", ",", ", ", "!", "&", "^", " ^ ") + g.operand()
	}
	return text
}

// grid lists nodes of few racks in no order: work for folding in several dimensions.
func (g generator) grid() string {
	var names []string
	for range 1 + g.IntN(60) {
		name := fmt.Sprintf("r%dn%d", g.IntN(6), 7+g.IntN(7))
		if g.IntN(4) == 0 {
			name += fmt.Sprintf("c[%d-%d]", g.IntN(2), 1+g.IntN(3))
		}
		names = append(names, name)
	}
	return strings.Join(names, ",")
}

// broken changes one character. Blanks go first: with digits after a bracket ClusterShell takes
// them for part of a number, and Parse does not.
func (g generator) broken(expr string) string {
	expr = strings.ReplaceAll(expr, " ", "")
	i := g.IntN(len(expr))
	return expr[:i] + pick(g, "", "[", "]", ",", "-", "/", "!", "0", "1-") + expr[i+g.IntN(2):]
}

// refused are the messages for what ClusterShell accepts and Parse does not, as the package
// comment lists it.
var refused = []string{
	`'-' in a bracket`, // negative numbers, and 1-2-3
	"padding length mismatch: 0-0",
	"character '/' cannot be in a node name",
	"a number is missing here", // n[,1]0, since 0 alone is one
}

func TestAgainstClusterShell(t *testing.T) {
	g := generator{rand.New(rand.NewPCG(1, 19))}
	var exprs []string
	for range 1000 {
		exprs = append(exprs, g.expr())
	}
	for range 300 {
		exprs = append(exprs, g.grid(), g.grid()+pick(g, "!", "&", "^")+g.grid())
		exprs = append(exprs, g.broken(g.expr()))
	}
	valid := 0
	for i, want := range clusterShell(t, exprs) {
		if want.Error == "" {
			valid++
		}
		compare(t, exprs[i], want)
	}
	if min := len(exprs) / 2; valid < min {
		t.Errorf("%d of %d expressions are valid, want %d or more to compare", valid, len(exprs), min)
	}
}

func compare(t *testing.T, expr string, want answer) {
	t.Helper()
	got, err := Parse(expr)
	var e *Error
	switch {
	case errors.As(err, &e) && want.Error == "":
		if !slices.ContainsFunc(refused, func(s string) bool { return strings.HasPrefix(e.Msg, s) }) {
			t.Errorf("%q: %v, want %s", expr, err, want.Fold)
		}
		return
	case err == nil && want.Error != "":
		t.Errorf("%q: got %s, want an error such as %s", expr, got, want.Error)
		return
	}
	if got.String() != want.Fold {
		t.Errorf("%q folds to\n%s, want\n%s", expr, got, want.Fold)
	}
	if names := slices.Collect(got.All()); !slices.Equal(names, want.Names) {
		t.Errorf("%q expands to\n%q, want\n%q", expr, names, want.Names)
	}
	if got.Len() != len(want.Names) {
		t.Errorf("%q has %d nodes, want %d", expr, got.Len(), len(want.Names))
	}
}

// The command itself, for a few: what it prints is what the library says above.
func TestAgainstNodesetCommand(t *testing.T) {
	command := nodesetCommand(t)
	for _, expr := range []string{"n[0-99],gpu[1-4]", "n1,n01", "r[1-2]n[1-3]!r1n2", "n[08-12]"} {
		set, err := Parse(expr)
		if err != nil {
			t.Fatal(err)
		}
		for option, got := range map[string]string{
			"-f": set.String(),
			"-e": strings.Join(slices.Collect(set.All()), " "),
			"-c": fmt.Sprint(set.Len()),
		} {
			out, err := exec.Command(command, option, expr).Output()
			if err != nil {
				t.Fatal(err)
			}
			if want := strings.TrimSpace(string(out)); got != want {
				t.Errorf("%s: got %s, want what nodeset %s prints: %s", expr, got, option, want)
			}
		}
	}
}
