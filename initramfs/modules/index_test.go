package modules

import (
	"reflect"
	"testing"
)

func TestIndex(t *testing.T) {
	x := Index{
		Modules: []Module{{Path: "kernel/drivers/virtio/virtio_ring.ko"}, {"kernel/drivers/virtio/virtio.ko", []string{"kernel/drivers/virtio/virtio_ring.ko"}}},
		Aliases: []Alias{{"virtio:d00000001v*", "virtio_net"}, {"dmi*:pnA B", "virtio"}},
		Softdeps: []Softdep{
			{Module: "ext4", Pre: []string{"crypto-crc32c"}},
			{Module: "both", Pre: []string{"a", "b"}, Post: []string{"c"}},
		},
		Builtin:        []string{"kernel/fs/ext4/ext4.ko"},
		BuiltinAliases: []Alias{{"fs-ext3", "ext4"}},
	}
	if got, err := Parse(x.Format()); err != nil || !reflect.DeepEqual(got, x) {
		t.Errorf("Parse(Format(x)) = %+v, %v", got, err)
	}
	for _, text := range []string{"kernel/a.ko", "a b: c", ": a"} {
		if got, err := Parse(map[string]string{depFile: text}); err == nil || !reflect.DeepEqual(got, Index{}) {
			t.Errorf("modules.dep %q: %+v, %v", text, got, err)
		}
	}
}

func FuzzIndex(f *testing.F) {
	f.Add("a.ko: b.ko c.ko\nb.ko:\n# no\n", "# Aliases\nalias pci:v*d0[1-3]* a\nalias x y z\n", "softdep a pre: b post: c\nsoftdep d e\n", "kernel/x.ko\n", "x.alias=fs-x\x00x.license=GPL\x00")
	f.Fuzz(func(t *testing.T, dep, alias, softdep, builtin, modinfo string) {
		x, err := Parse(map[string]string{depFile: dep, aliasFile: alias, softdepFile: softdep, builtinFile: builtin, builtinModinfoFile: modinfo})
		if err != nil {
			if !reflect.DeepEqual(x, Index{}) {
				t.Fatalf("%+v with %v", x, err)
			}
			return
		}
		if again, err := Parse(x.Format()); err != nil || !reflect.DeepEqual(again, x) {
			t.Fatalf("Parse(Format(x)) = %+v, %v, want %+v", again, err, x)
		}
	})
}
