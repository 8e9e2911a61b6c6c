package modules

import (
	"os/exec"
	"strings"
	"testing"
)

// TestLinks: what goes into every node's image brings neither a decompressor nor a reader of ELF, nor fmt.
func TestLinks(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for pkg := range strings.FieldsSeq(string(out)) {
		first, _, _ := strings.Cut(pkg, "/")
		switch {
		case strings.Contains(first, ".") && pkg != "golang.org/x/sys/unix", pkg == "fmt", first == "debug", first == "compress":
			t.Errorf("it links %s", pkg)
		}
	}
}
