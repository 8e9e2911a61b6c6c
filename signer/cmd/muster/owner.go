package main

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// unitInstalled says that systemd is to run the daemon.
func unitInstalled() bool {
	for _, dir := range []string{"/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"} {
		if _, err := os.Stat(filepath.Join(dir, "muster.service")); err == nil {
			return true
		}
	}
	return false
}

// needUser keeps root from making a state directory that the unit's user, who is still to be made, could not read.
func needUser(dir string) error {
	if os.Geteuid() != 0 || dir != defaultDir || !unitInstalled() {
		return nil
	}
	if info, err := os.Stat(dir); err == nil && info.Sys().(*syscall.Stat_t).Uid != 0 {
		return nil // it will all be that user's
	}
	if _, err := user.Lookup("muster"); err == nil {
		return nil
	}
	return fail(exitUsage, "systemd-sysusers && systemd-tmpfiles --create && systemctl daemon-reload, then this again",
		"muster.service is to run as the user muster, who does not exist")
}

// permissionHint is for files in dir that this process may not open.
func permissionHint(dir string) string {
	info, err := os.Stat(dir)
	if err != nil || int(info.Sys().(*syscall.Stat_t).Uid) != os.Geteuid() {
		return "run as root"
	}
	owner := strconv.Itoa(os.Geteuid())
	if u, err := user.LookupId(owner); err == nil {
		owner = u.Username
	}
	return "as root: chown -R " + owner + ": " + quoted(dir)
}

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
