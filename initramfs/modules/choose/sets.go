package choose

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

// Default is what an image has when nobody says otherwise.
var Default = []string{"tpm", "virtio", "server"}

// sets are names for many modules. A kernel need not have them all.
var sets = map[string][]string{
	"tpm":    {"drivers/char/tpm/"},
	"virtio": {"virtio_pci", "virtio_mmio", "virtio_net", "virtio_blk", "virtio_rng"},

	// The network cards of servers, and those of virtual machines.
	"server": {
		"e1000", "e1000e", "igb", "igbvf", "igc", "ixgbe", "ixgbevf", "i40e", "iavf", "ice", "idpf", // Intel
		"tg3", "bnx2", "bnx2x", "bnxt_en", // Broadcom
		"mlx4_core", "mlx4_en", "mlx5_core", // NVIDIA
		"cxgb4",     // Chelsio
		"enic",      // Cisco
		"be2net",    // Emulex
		"qede",      // QLogic
		"sfc",       // Solarflare
		"atlantic",  // Marvell, Aquantia
		"ionic",     // AMD Pensando
		"amd_xgbe",  // AMD
		"hns3",      // HiSilicon
		"r8169",     // Realtek
		"ena",       // Amazon
		"gve",       // Google
		"mana",      // Azure
		"hv_netvsc", // Hyper-V
		"vmxnet3",   // VMware
	},
	"all-net": {"drivers/net/ethernet/", "virtio_net", "hv_netvsc", "vmxnet3"},

	// What a root file system to hand over to is on.
	"root": {"squashfs", "overlay", "loop", "ext4", "xfs", "nvme", "ahci", "sd_mod", "virtio_blk"},
}

// asked are modules that a module asks the kernel for when it finds what they are for, by way of a modprobe
// that an image need not have: they are loaded after it, if they were chosen.
var asked = map[string][]string{"mlx4_core": {"mlx4_en"}}

// Sets are the names of sets, in order.
func Sets() []string { return slices.Sorted(maps.Keys(sets)) }

// wanted finds the modules that a wish means: those of a set; those below a directory, “drivers/net/phy/”;
// those whose path fits a pattern with a slash, “fs/nls/*”; those whose name fits a pattern, “ib_*”; those
// with that alias. Only a set may come to nothing, or what is part of the kernel.
func (t *Tree) wanted(wish string) ([]string, error) {
	if members, ok := sets[wish]; ok {
		var names []string
		for _, member := range members {
			names = append(names, t.fitting(member)...)
		}
		return names, nil
	}
	if _, err := path.Match(wish, ""); err != nil {
		return nil, fmt.Errorf("%q is no pattern: %v", wish, err)
	}
	names := t.fitting(wish)
	if len(names) == 0 {
		names = t.aliased(wish)
	}
	if len(names) == 0 && !t.isBuiltin(wish) {
		return nil, fmt.Errorf("%s has no module %q\nhint: name a module, a path below kernel/, a pattern, or one of the sets %s", t.dir, wish, strings.Join(Sets(), ", "))
	}
	return names, nil
}

// fitting are the modules whose path or name fits a pattern, in order of their names.
func (t *Tree) fitting(pattern string) (names []string) {
	for _, name := range t.names {
		if fits(pattern, t.modules[name]) {
			names = append(names, name)
		}
	}
	return names
}

func fits(pattern string, m *module) bool {
	if !strings.Contains(pattern, "/") {
		ok, _ := path.Match(strings.ReplaceAll(pattern, "-", "_"), m.name)
		return ok
	}
	file := strings.TrimPrefix(strings.TrimSuffix(plainPath(m.path), ".ko"), "kernel/")
	if strings.HasSuffix(pattern, "/") {
		return strings.HasPrefix(file, pattern)
	}
	ok, _ := path.Match(pattern, file)
	return ok
}
