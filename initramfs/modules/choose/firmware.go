package choose

import (
	"io/fs"
	"slices"
)

// Firmware is a file that a module may ask for.
type Firmware struct {
	Module string
	Name   string   // below lib/firmware; may be a pattern
	Files  []string // that there are of it, below lib/firmware; they may be compressed, the kernel sees to it
}

// Firmware are the files that the chosen modules may ask for, in the order of the modules, and what a firmware
// directory (/lib/firmware) has of them. Most cards carry what they need and only ask for something newer.
func (c *Choice) Firmware(dir fs.FS) []Firmware {
	var all []Firmware
	for _, m := range c.Modules {
		for _, name := range slices.Compact(slices.Sorted(slices.Values(m.Info.Firmware))) {
			f := Firmware{Module: m.Name, Name: name}
			for _, suffix := range []string{"", ".xz", ".zst"} {
				found, _ := fs.Glob(dir, name+suffix) // fails on what is no pattern, and no file has such a name
				f.Files = append(f.Files, found...)
			}
			all = append(all, f)
		}
	}
	return all
}
