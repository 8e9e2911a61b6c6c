package choose_test

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"muster/initramfs/modules/choose"
)

// TestVirtioChain: QEMU's network card takes eight modules of the cloud kernel, and no other.
func TestVirtioChain(t *testing.T) {
	c := mustChoose(t, open(t, kernel(t, "cloud")), "virtio_net", "virtio-pci")
	want := []string{"virtio_ring", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio", "virtio_pci", "failover", "net_failover", "virtio_net"}
	if got := names(c); !slices.Equal(sorted(got), sorted(want)) {
		t.Errorf("chosen %v, want %v", got, want)
	}
	if err := ordered(c.Modules, needs(c.Index())); err != nil {
		t.Error(err)
	}
}

// TestWishes: what each form of a wish means, and that their order does not matter.
func TestWishes(t *testing.T) {
	tree := open(t, kernel(t, "generic"))
	for _, c := range []struct {
		wish string
		has  []string
		not  string
	}{
		{"tpm", []string{"tpm_tis_spi", "tpm_tis_i2c_cr50"}, "virtio"},
		{"virtio", []string{"virtio_net", "virtio_blk", "virtio_rng", "virtio_mmio"}, "virtio_gpu"},
		{"server", []string{"mlx5_core", "mlx4_en", "ice", "tg3", "libphy", "realtek", "hv_vmbus"}, "forcedeth"},
		{"all-net", []string{"forcedeth", "mlx5_core", "vmxnet3", "virtio_net"}, "virtio_blk"},
		{"root", []string{"squashfs", "xfs", "ext4", "nvme", "crc32c_generic", "crc32c_intel"}, "btrfs"},
		{"amd-xgbe", []string{"amd_xgbe"}, "igb"},
		{"ib_*", []string{"ib_core", "ib_uverbs", "ib_ipoib"}, "mlx5_ib"},
		{"drivers/net/phy/", []string{"broadcom", "marvell"}, "igb"},
		{"drivers/net/ethernet/intel/*/*", []string{"igb", "ice"}, "e100"},
		{"ipmi_msghandler", []string{"ipmi_devintf"}, "ipmi_si"},
		{"fs-ext3", []string{"ext4", "jbd2"}, "xfs"},
		{"fs-debugfs", nil, "debugfs"},
	} {
		got := names(mustChoose(t, tree, c.wish))
		for _, name := range c.has {
			if !slices.Contains(got, name) {
				t.Errorf("%q: %v lacks %s", c.wish, got, name)
			}
		}
		if slices.Contains(got, c.not) {
			t.Errorf("%q: %v has %s", c.wish, got, c.not)
		}
	}
	a, b := mustChoose(t, tree, "tpm", "server", "root"), mustChoose(t, open(t, kernel(t, "generic")), "root", "server", "tpm", "igb")
	if !reflect.DeepEqual(a.Modules, b.Modules) {
		t.Error("another order of wishes gives another choice")
	}
	if post := softdep(a, "mlx4_core"); !slices.Equal(post, []string{"mlx4_en"}) {
		t.Errorf("after mlx4_core comes %v", post)
	}
	if post := softdep(mustChoose(t, tree, "mlx4_core"), "mlx4_core"); post != nil {
		t.Errorf("mlx4_core alone: then comes %v", post)
	}
}

func softdep(c *choose.Choice, module string) []string {
	for _, s := range c.Index().Softdeps {
		if s.Module == module {
			return s.Post
		}
	}
	return nil
}

// TestErrors: each names the module, and the one that is at fault.
func TestErrors(t *testing.T) {
	cloud := kernel(t, "cloud")
	circle := part(t, cloud, "virtio_net", "net_failover", "virtio", "virtio_ring")
	b, err := os.ReadFile(filepath.Join(circle, "kernel/drivers/net/virtio_net.ko"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(circle, "kernel/failover.ko"), b) // needs net_failover, which needs failover
	renamed := filepath.Join(t.TempDir(), "6.1.0-0-cloud-amd64")
	write(t, filepath.Join(renamed, "virtio_ring.ko"), b)
	damaged := part(t, cloud, "virtio_ring")
	write(t, filepath.Join(damaged, "bad.ko"), b[:len(b)/2])
	write(t, filepath.Join(damaged, "bad2.ko.xz"), b)

	for _, c := range []struct{ dir, wish, want string }{
		{circle, "virtio_net", "modules need each other: virtio_net needs net_failover needs failover needs net_failover"},
		{part(t, cloud, "virtio_net", "virtio", "virtio_ring"), "virtio_net", "module virtio_net needs net_failover, which "},
		{renamed, "virtio_ring", "module virtio_ring was built for kernel \"" + filepath.Base(cloud) + "\", not for 6.1.0-0-cloud-amd64\nhint: "},
		{damaged, "bad", "module bad: "},
		{damaged, "bad2", "module bad2: "},
		{cloud, "no_such_module", `has no module "no_such_module"` + "\nhint: "},
		{cloud, "[", `"[" is no pattern`},
	} {
		choice, err := open(t, c.dir).Choose("virtio_ring", c.wish)
		if err == nil || !strings.Contains(err.Error(), c.want) || choice != nil {
			t.Errorf("%s: %v, want %q", c.wish, err, c.want)
		}
	}
	if _, err := open(t, damaged).Choose("virtio_ring"); err != nil {
		t.Errorf("a damaged module that nobody wants: %v", err)
	}
	for _, dir := range []string{t.TempDir(), "/nonexistent"} {
		if tree, err := choose.Open(dir); err == nil || tree != nil {
			t.Errorf("%s: %v, %v", dir, tree, err)
		}
	}
}

// TestUpdatesHide: a driver that the site built for itself is taken before the kernel's.
func TestUpdatesHide(t *testing.T) {
	dir := part(t, kernel(t, "cloud"), "virtio_ring", "virtio")
	b, err := os.ReadFile(filepath.Join(dir, "kernel/drivers/virtio/virtio.ko"))
	if err != nil {
		t.Fatal(err)
	}
	for _, place := range []string{"extra", "updates/dkms", "weak-updates"} {
		write(t, filepath.Join(dir, place, "virtio.ko"), b)
	}
	c := mustChoose(t, open(t, dir), "virtio_ring", "virtio*")
	if path := c.Modules[len(c.Modules)-1].Path; path != "updates/dkms/virtio.ko" {
		t.Errorf("chosen %s", path)
	}
}

// TestCompressed: modules that are compressed as distributions do it make the same image, byte for byte.
func TestCompressed(t *testing.T) {
	wishes := []string{"virtio", "igb", "r8169", "squashfs", "libcrc32c"}
	generic := kernel(t, "generic")
	plain := part(t, generic, names(mustChoose(t, open(t, generic), wishes...))...)
	want := mustChoose(t, open(t, plain), wishes...)
	files, err := want.Files()
	if err != nil {
		t.Fatal(err)
	}
	for _, compressor := range [][]string{
		{"xz", "--check=crc32", "--lzma2=dict=1MiB"},
		{"zstd", "-q", "--rm"},
		{"gzip", "-n"},
	} {
		t.Run(compressor[0], func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), filepath.Base(plain))
			if err := os.CopyFS(dir, os.DirFS(plain)); err != nil {
				t.Fatal(err)
			}
			run(t, "sh", append([]string{"-c", `find "$0" -name '*.ko' -exec "$@" {} +`, dir}, compressor...)...)
			if left := run(t, "find", dir, "-name", "*.ko"); left != "" {
				t.Fatalf("not compressed: %s", left)
			}
			c := mustChoose(t, open(t, dir), wishes...)
			if !reflect.DeepEqual(c.Modules, want.Modules) {
				t.Errorf("chosen %v, want %v", names(c), names(want))
			}
			if got, err := c.Files(); err != nil || !reflect.DeepEqual(got, files) {
				t.Errorf("the files differ (%v)", err)
			}
		})
	}
}

// TestBuiltin: what is part of the kernel is wanted for nothing.
func TestBuiltin(t *testing.T) {
	c := mustChoose(t, open(t, kernel(t, "cloud")), "ext4", "fs-ext2", "xfs")
	got := names(c)
	if slices.Contains(got, "ext4") || !slices.Contains(got, "xfs") {
		t.Errorf("chosen %v", got)
	}
	x := c.Index()
	if !slices.Contains(x.Builtin, "kernel/fs/ext4/ext4.ko") || len(x.BuiltinAliases) == 0 {
		t.Errorf("the index has %v and %v", x.Builtin, x.BuiltinAliases)
	}
}

func TestFirmware(t *testing.T) {
	c := mustChoose(t, open(t, kernel(t, "generic")), "tg3", "bnx2x", "igb")
	dir := fstest.MapFS{"tigon/tg3.bin": {}, "tigon/tg3_tso.bin.xz": {}, "tigon/other.bin": {}}
	files := map[string][]string{}
	for _, f := range c.Firmware(dir) {
		files[f.Module+" "+f.Name] = f.Files
	}
	for name, want := range map[string][]string{
		"tg3 tigon/tg3.bin": {"tigon/tg3.bin"}, "tg3 tigon/tg3_tso.bin": {"tigon/tg3_tso.bin.xz"}, "tg3 tigon/tg3_tso5.bin": nil,
	} {
		if got, ok := files[name]; !ok || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v", name, got, ok)
		}
	}
	if len(files) < 8 {
		t.Errorf("the firmware of tg3 and bnx2x: %v", files)
	}
}

// maxDefault is what the default modules of the generic kernel may add to an image. xz makes a fifth of it.
const maxDefault = 28 << 20

func TestSize(t *testing.T) {
	tree := open(t, kernel(t, "generic"))
	for _, wishes := range [][]string{{"virtio"}, {"root"}, {"all-net"}, choose.Default} {
		c := mustChoose(t, tree, wishes...)
		files, err := c.Files()
		if err != nil {
			t.Fatal(err)
		}
		size, index := 0, 0
		for _, f := range files {
			size += len(f.Content)
			if strings.HasPrefix(filepath.Base(f.Path), "modules.") {
				index += len(f.Content)
			}
		}
		t.Logf("%s: %d modules, %d bytes, %d of them the index", strings.Join(wishes, " "), len(c.Modules), size, index)
		if size > maxDefault && slices.Equal(wishes, choose.Default) {
			t.Errorf("%v have %d bytes, more than %d", wishes, size, maxDefault)
		}
	}
}
