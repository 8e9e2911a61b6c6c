package modules

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Finit is the Insert of a running system: finit_module(2). A module that is loaded already is no error. The
// kernel's reasons are told in words where the error number's own text would mislead.
func Finit(file *os.File, params string) error {
	err := unix.FinitModule(int(file.Fd()), params, 0)
	switch {
	case errors.Is(err, unix.EEXIST):
		return nil
	case errors.Is(err, unix.ENOENT):
		return reason{"it needs a symbol that nothing loaded has, or has no such parameter; dmesg tells which", err}
	case errors.Is(err, unix.ENOEXEC):
		return reason{"it was not built for this kernel", err}
	case errors.Is(err, unix.EKEYREJECTED):
		return reason{"it is not signed by a key that this kernel trusts", err}
	case errors.Is(err, unix.EPERM):
		return reason{"the kernel refuses it: module_blacklist=, or lockdown", err}
	}
	return err
}

type reason struct {
	text string
	err  error
}

func (r reason) Error() string { return r.text }

func (r reason) Unwrap() error { return r.err }
