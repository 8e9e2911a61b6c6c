package choose_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"muster/initramfs/modules"
)

// modaliases are those of devices that clusters have, as their kernels tell them.
var modaliases = []string{
	"pci:v00001AF4d00001000sv00001AF4sd00000001bc02sc00i00", // virtio network card, transitional
	"pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00", // virtio network card
	"virtio:d00000001v00001AF4",
	"virtio:d00000002v00001AF4",
	"virtio:d00000004v00001AF4",
	"pci:v00008086d0000100Esv00001AF4sd00001100bc02sc00i00", // e1000
	"pci:v00008086d000010D3sv00008086sd0000A01Fbc02sc00i00", // e1000e, 82574L
	"pci:v00008086d00001533sv000015D9sd00001533bc02sc00i00", // igb, I210
	"pci:v00008086d000015F3sv00001849sd000015F3bc02sc00i00", // igc, I225-V
	"pci:v00008086d000010FBsv00008086sd00000003bc02sc00i00", // ixgbe, 82599
	"pci:v00008086d00001572sv00008086sd00000007bc02sc00i00", // i40e, X710
	"pci:v00008086d00001592sv00008086sd00000002bc02sc00i00", // ice, E810-C
	"pci:v000014E4d00001657sv000014E4sd00001657bc02sc00i00", // tg3, BCM5719
	"pci:v000014E4d0000168Esv0000103Csd00003382bc02sc00i00", // bnx2x, BCM57810
	"pci:v000014E4d000016D7sv000014E4sd00001402bc02sc00i00", // bnxt_en, BCM57414
	"pci:v000015B3d00001003sv000015B3sd00000055bc02sc00i00", // mlx4_core, ConnectX-3
	"pci:v000015B3d00001017sv000015B3sd00000007bc02sc00i00", // mlx5_core, ConnectX-5
	"pci:v000015B3d0000101Bsv000015B3sd00000007bc02sc07i00", // mlx5_core, ConnectX-6, InfiniBand
	"pci:v00001425d00005410sv00001425sd00000000bc02sc00i00", // cxgb4, T580
	"pci:v00001137d00000043sv00001137sd0000012Cbc02sc00i00", // enic, VIC
	"pci:v000019A2d00000710sv000010DFsd0000E72Abc02sc00i00", // be2net
	"pci:v00001077d00001656sv00001077sd00000002bc02sc00i00", // qede
	"pci:v00001924d00000A03sv00001924sd00008022bc02sc00i00", // sfc
	"pci:v00001D0Fd0000EC20sv00001D0Fsd0000EC20bc02sc00i00", // ena
	"pci:v000015ADd000007B0sv000015ADsd000007B0bc02sc00i00", // vmxnet3
	"pci:v00001D6Ad000007B1sv00001D6Asd00000001bc02sc00i00", // atlantic
	"pci:v00001022d00001458sv00001022sd00001458bc02sc00i00", // amd-xgbe
	"pci:v000010ECd00008168sv00001458sd0000E000bc02sc00i00", // r8169
	"vmbus:635161f83edfc546913ff2d2f965ed0e",                // hv_netvsc
	"acpi:VMBUS:",
	"pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01", // ahci
	"pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02", // nvme
	"scsi:t-0x00",
	"acpi:MSFT0101:PNP0C31:",
	"acpi:PNP0C0C:",
	"cpu:type:x86,ven0000fam0006mod0055:feature:,0000,0001,0094,00F0",
	"usb:v0BDAp8153d3000dc00dsc00dp00icFFiscFFip00in00",
	"usb:v152Dp0567d0115dc00dsc00dp00ic08isc06ip50in00",
	"dmi:bvnIBM:bvr1:bd1:svnIBM:pnIBM3850M2/x3950M2-7233:",
	"fs-squashfs", "fs-xfs", "fs-ext3", "fs-overlay", "crypto-crc32c", "xfs", "virtio-net", "nvme", "net-pf-10", "no-such-thing",
}

// TestModprobe: the loader loads what kmod's modprobe loads, out of the whole of a kernel that depmod has been
// over, and out of our image when depmod has; and the same out of our image as it is.
func TestModprobe(t *testing.T) {
	dir := kernel(t, "generic")
	release := filepath.Base(dir)
	whole := installed(t, dir)
	for _, modalias := range modaliases {
		sameAsModprobe(t, whole, release, modalias)
		if strings.HasPrefix(modalias, "pci:") && len(ours(t, whole, release, modalias)) == 0 {
			t.Errorf("%s: nothing is loaded for a card", modalias)
		}
	}
	image := unpack(t, mustChoose(t, open(t, dir), "tpm", "virtio", "server", "root"))
	before := map[string][]string{}
	for _, modalias := range modaliases {
		before[modalias] = ours(t, image, release, modalias)
		sameAsBusybox(t, image, release, modalias)
	}
	run(t, "depmod", "-b", image, release)
	for _, modalias := range modaliases {
		sameAsModprobe(t, image, release, modalias)
		after := ours(t, image, release, modalias)
		if slices.ContainsFunc(after, func(file string) bool { return modules.Name(file) == "mlx4_core" }) {
			after = append(after, mlx4EN) // depmod does not know of it, and the kernel asks modprobe for it
		}
		if !slices.Equal(sorted(after), sorted(before[modalias])) {
			t.Errorf("%s: we load %v, after depmod %v", modalias, before[modalias], after)
		}
	}
}

const mlx4EN = "kernel/drivers/net/ethernet/mellanox/mlx4/mlx4_en.ko"

func sameAsModprobe(t *testing.T, root, release, modalias string) {
	t.Helper()
	got, want := ours(t, root, release, modalias), modprobe(t, root, release, modalias)
	if !slices.Equal(got, want) {
		t.Errorf("%s: we load %v, modprobe %v", modalias, got, want)
	}
}

// ours are the files that the loader would load below root for a name, in order.
func ours(t *testing.T, root, release, name string) (files []string) {
	t.Helper()
	dir := filepath.Join(root, "lib/modules", release)
	l, err := modules.Open(dir, "", func(file *os.File, _ string) error {
		files = append(files, strings.TrimPrefix(file.Name(), dir+"/"))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	l.Load(name) // there may be nothing to load
	return files
}

// modprobe is what kmod's modprobe would load below root for a name, in order.
func modprobe(t *testing.T, root, release, name string) []string {
	t.Helper()
	return inserts(run(t, "sh", "-c", `PATH=$PATH:/usr/sbin; modprobe "$@" || [ $? = 1 ]`, "sh",
		"-d", root, "-S", release, "-C", "/dev/null", "-q", "-D", name), release)
}

// sameAsBusybox checks that busybox's modprobe, which knows no soft dependencies and reads depmod's text files,
// would load the same out of our image but for those. It is shut in below root, with no right to load anything.
func sameAsBusybox(t *testing.T, root, release, name string) {
	t.Helper()
	running := strings.TrimSpace(run(t, "uname", "-r"))
	if err := os.Symlink(release, filepath.Join(root, "lib/modules", running)); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	out := run(t, "unshare", "-r", "sh", "-c", `cp /bin/busybox "$1" && exec chroot "$1" /busybox sh -c '/busybox modprobe -D "$1"; :' sh "$2"`, "sh", root, name)
	theirs, us := inserts(out, running), ours(t, root, release, name)
	for _, file := range theirs {
		if !slices.Contains(us, file) {
			t.Errorf("%s: busybox loads %s, we %v", name, file, us)
		}
	}
	if len(us) > 0 && len(theirs) == 0 {
		t.Errorf("%s: we load %v, busybox %v", name, us, theirs)
	}
}

// inserts are the module files in lines “insmod FILE”, below the modules directory. kmod says some twice.
func inserts(out, release string) (files []string) {
	for line := range strings.Lines(out) {
		words := strings.Fields(line)
		if len(words) > 1 && words[0] == "insmod" {
			_, file, _ := strings.Cut(words[1], "/lib/modules/"+release+"/")
			if !slices.Contains(files, file) {
				files = append(files, file)
			}
		}
	}
	return files
}
