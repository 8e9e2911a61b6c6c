package choose

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"strings"

	"muster/initramfs/modules"
)

// Info is what a module says of itself.
type Info struct {
	Depends   []string // names of modules that must be loaded first
	Pre, Post []string // names or aliases of what it would like to be loaded before and after it
	Aliases   []string // patterns
	Firmware  []string // files that it may ask for, below lib/firmware
	Vermagic  string   // the release of the kernel that it was built for, then what else must agree
}

// readInfo reads the .modinfo of a module's file, which may be compressed.
func readInfo(file string) (Info, error) {
	b, err := read(file)
	if err != nil {
		return Info{}, err
	}
	section, err := modinfo(b)
	if err != nil {
		return Info{}, fmt.Errorf("%s: %v", file, err)
	}
	return parseInfo(section)
}

// modinfo returns the section .modinfo of an ELF file.
func modinfo(b []byte) ([]byte, error) {
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("no kernel module: %v", err)
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, errors.New("no kernel module: it has no section .modinfo")
	}
	b, err = s.Data()
	if err != nil {
		return nil, fmt.Errorf("no kernel module: %v", err)
	}
	return b, nil
}

// parseInfo reads the strings “key=value” of a section .modinfo, each of which ends in NUL. What it does not
// know it passes over.
func parseInfo(section []byte) (Info, error) {
	if len(section) > 0 && section[len(section)-1] != 0 {
		return Info{}, errors.New("its section .modinfo is cut short")
	}
	var info Info
	for s := range strings.SplitSeq(string(section), "\x00") {
		key, value, _ := strings.Cut(s, "=")
		if value == "" {
			continue
		}
		switch key {
		case "depends":
			for name := range strings.SplitSeq(value, ",") {
				if name != "" {
					info.Depends = append(info.Depends, strings.ReplaceAll(name, "-", "_"))
				}
			}
		case "softdep":
			soft := modules.ParseSoftdep(strings.Fields(value))
			info.Pre, info.Post = append(info.Pre, soft.Pre...), append(info.Post, soft.Post...)
		case "alias":
			info.Aliases = append(info.Aliases, value)
		case "firmware":
			info.Firmware = append(info.Firmware, value)
		case "vermagic":
			info.Vermagic = value
		}
	}
	return info, nil
}
