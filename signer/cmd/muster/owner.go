package main

import (
	"fmt"
	"os"
	"syscall"
)

// asOwner makes root the owner of dir, for good: what root writes there by hand, the daemon's user must be
// able to read. Whoever is not root stays who they are.
func asOwner(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	owner := info.Sys().(*syscall.Stat_t)
	if os.Geteuid() != 0 || owner.Uid == 0 {
		return nil
	}
	err = syscall.Setgroups([]int{int(owner.Gid)})
	if err == nil {
		err = syscall.Setgid(int(owner.Gid))
	}
	if err == nil {
		err = syscall.Setuid(int(owner.Uid))
	}
	if err != nil {
		return fmt.Errorf("become the owner of %s: %v", dir, err)
	}
	keepSecret() // which another user's memory is not by itself
	return nil
}
