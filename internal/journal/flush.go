package journal

import (
	"time"

	"golang.org/x/sys/unix"
)

const socket = "/run/systemd/journal/socket"

// Flush waits until journald has what was sent before, for a second at most. A program calls it before it
// ends: journald looks for the unit of an entry's process when it reads the entry, and what a process that has
// ended by then said last would be shown for no unit.
//
// journald reads one datagram after the other, so that once it has read a later one, which says nothing, the
// entry is done.
func Flush() {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if unix.Sendto(fd, []byte("\n"), 0, &unix.SockaddrUnix{Name: socket}) != nil {
		return
	}
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if unread, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ); err != nil || unread == 0 {
			return
		}
	}
}
