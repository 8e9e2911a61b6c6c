package pid1

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"
)

// TestHardLinks: what several names share in an archive, as each tool writes it, they share in the root.
func TestHardLinks(t *testing.T) {
	needRoot(t, "to give files away")
	tree := t.TempDir()
	for _, command := range []string{
		"mkdir $T/bin $T/sbin", "printf data >$T/bin/tool && chown 7:8 $T/bin/tool && chmod 4755 $T/bin/tool",
		"ln $T/bin/tool $T/bin/alias && ln $T/bin/tool $T/sbin/zz", ": >$T/empty && ln $T/empty $T/void", "printf one >$T/single",
		"printf apart >$T/half && ln $T/half $T/.outside",
	} {
		if err := shell("T=" + tree + "; " + command); err != nil {
			t.Fatal(err)
		}
	}
	const names = `find . -path ./.outside -prune -o -print | LC_ALL=C sort`
	for _, c := range []struct{ program, make string }{
		{"cpio", names + " | cpio -o -H newc --quiet >$F"},
		{"cpio", names + " -r | cpio -o -H newc --quiet --reproducible >$F"},
		{"bsdtar", names + " | bsdtar -c --format=newc -n -T - -f $F"},
		{"bsdcpio", names + " | bsdcpio -o -H newc --quiet >$F"},
	} {
		if _, err := exec.LookPath(c.program); err != nil {
			if os.Getenv("CI") != "" {
				t.Error(err)
			}
			t.Logf("left out: %v", err)
			continue
		}
		file := filepath.Join(t.TempDir(), "archive")
		if err := shell("cd " + tree + " && F=" + file + "; " + c.make); err != nil {
			t.Fatal(err)
		}
		archive, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer archive.Close()
		filled(t, c.make, archive)
	}
	filled(t, "u-root", uroot(t, tree)) // the data come with the first name
}

// uroot makes an archive as u-root's own tools do.
func uroot(t *testing.T, tree string) *bytes.Reader {
	t.Helper()
	var b bytes.Buffer
	w, recorder := cpio.Newc.Writer(&b), cpio.NewRecorder()
	for _, name := range []string{"bin/alias", "bin/tool", "empty", "half", "sbin/zz", "single", "void"} {
		r, err := recorder.GetRecord(filepath.Join(tree, name))
		if err != nil {
			t.Fatal(err)
		}
		r.Name = name
		if err := w.WriteRecord(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := cpio.WriteTrailer(w); err != nil {
		t.Fatal(err)
	}
	return bytes.NewReader(b.Bytes())
}

// filled wants what an archive gives to be as the tree is.
func filled(t *testing.T, made string, archive io.ReaderAt) {
	t.Helper()
	root := t.TempDir()
	if err := fill(root, archive); err != nil {
		t.Errorf("%s: %v", made, err)
		return
	}
	if err := shell("cd " + root + ` && test "$(stat -c '%h %s %u %g %a' bin/tool)" = "3 4 7 8 4755" &&
		test bin/tool -ef bin/alias && test bin/tool -ef sbin/zz && test "$(cat bin/tool)" = data &&
		test empty -ef void && test ! -s void && test "$(stat -c %h empty)" = 2 &&
		test "$(cat single)" = one && test "$(cat half)" = apart && test "$(stat -c %h half)" = 1`); err != nil {
		out, _ := exec.Command("find", root, "-type", "f", "-ls").CombinedOutput()
		t.Errorf("%s: %v\n%s", made, err, out)
	}
}
