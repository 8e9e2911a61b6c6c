package choose_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"muster/initramfs/modules"
	"muster/initramfs/modules/choose"
)

// TestDepmod: of every module of Debian's kernels we think what depmod thinks, which goes by the symbols.
func TestDepmod(t *testing.T) {
	for _, flavour := range []string{"generic", "cloud"} {
		t.Run(flavour, func(t *testing.T) {
			dir := kernel(t, flavour)
			want, err := modules.Read(filepath.Join(installed(t, dir), "lib/modules", filepath.Base(dir)))
			if err != nil {
				t.Fatal(err)
			}
			all := mustChoose(t, open(t, dir), "*")
			t.Logf("%d modules, %d of them below drivers/net", len(all.Modules), below(all, "kernel/drivers/net/"))
			compare(t, all.Index(), want)
			if err := ordered(all.Modules, needs(want)); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestOrderControl: the check of the order would notice another one.
func TestOrderControl(t *testing.T) {
	c := mustChoose(t, open(t, kernel(t, "cloud")), "virtio")
	want := needs(c.Index())
	if err := ordered(c.Modules, want); err != nil {
		t.Error(err)
	}
	for seed := range uint64(20) {
		shuffled := slices.Clone(c.Modules)
		rand.New(rand.NewPCG(seed, 0)).Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		if err := ordered(shuffled, want); err == nil {
			t.Errorf("shuffled by seed %d, all is in order", seed)
		}
	}
	if err := ordered(c.Modules[1:], want); err == nil {
		t.Error("without the first, all is in order")
	}
}

func below(c *choose.Choice, dir string) (n int) {
	for _, m := range c.Modules {
		if strings.HasPrefix(m.Path, dir) {
			n++
		}
	}
	return n
}

// needs are the paths that each module needs, by path.
func needs(x modules.Index) map[string][]string {
	all := map[string][]string{}
	for _, m := range x.Modules {
		all[m.Path] = m.Needs
	}
	return all
}

// ordered checks that each module comes after all that it needs.
func ordered(list []choose.Module, needs map[string][]string) error {
	loaded := map[string]bool{}
	for _, m := range list {
		for _, need := range needs[m.Path] {
			if !loaded[need] {
				return fmt.Errorf("%s comes before %s, which it needs", m.Path, need)
			}
		}
		loaded[m.Path] = true
	}
	return nil
}

// compare checks an index against that of depmod. Its order within a line is one of many; ours must do too.
func compare(t *testing.T, got, want modules.Index) {
	t.Helper()
	g, w := needs(got), needs(want)
	if !slices.Equal(slices.Sorted(maps.Keys(g)), slices.Sorted(maps.Keys(w))) {
		t.Errorf("%d modules, depmod has %d", len(g), len(w))
	}
	for path := range w {
		if a, b := sorted(g[path]), sorted(w[path]); !slices.Equal(a, b) {
			t.Errorf("%s needs %v, to depmod %v", path, a, b)
		}
		for i, need := range g[path] {
			for _, below := range w[need] {
				if !slices.Contains(g[path][i:], below) {
					t.Errorf("%s: %s is loaded after %s", path, below, need)
				}
			}
		}
	}
	if a, b := aliases(got), aliases(want); !slices.Equal(a, b) {
		t.Errorf("%d aliases, depmod has %d", len(a), len(b))
	}
	if a, b := softdeps(got), softdeps(want); !reflect.DeepEqual(a, b) {
		t.Errorf("soft dependencies %v, to depmod %v", a, b)
	}
}

func sorted(list []string) []string { return slices.Sorted(slices.Values(list)) }

func aliases(x modules.Index) (all []string) {
	for _, a := range x.Aliases {
		all = append(all, a.Pattern+" "+a.Module)
	}
	return sorted(all)
}

// softdeps are those of each module; depmod may have several lines for one, and what is not of ours none.
func softdeps(x modules.Index) map[string]modules.Softdep {
	all := map[string]modules.Softdep{}
	for _, s := range x.Softdeps {
		if len(s.Pre)+len(s.Post) == 0 {
			continue
		}
		sum := all[s.Module]
		all[s.Module] = modules.Softdep{Pre: append(sum.Pre, s.Pre...), Post: append(sum.Post, s.Post...)}
	}
	// The one that no module says, and Debian has in /lib/modprobe.d where rdma-core is installed.
	if s := all["mlx4_core"]; reflect.DeepEqual(s, modules.Softdep{Post: []string{"mlx4_en"}}) {
		delete(all, "mlx4_core")
	}
	return all
}

// TestWishGivesWay: what a module would like before itself comes after it, if it needs the module.
func TestWishGivesWay(t *testing.T) {
	dir := part(t, kernel(t, "generic"), "libcrc32c", "erofs")
	from, to := filepath.Join(dir, "kernel/fs/erofs/erofs.ko"), filepath.Join(dir, "kernel/crc32c.ko")
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
	got := names(mustChoose(t, open(t, dir), "libcrc32c")) // would like crc32c, which needs libcrc32c here
	if want := []string{"libcrc32c", "crc32c"}; !slices.Equal(got, want) {
		t.Errorf("chosen %v, want %v", got, want)
	}
}
