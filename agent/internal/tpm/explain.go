package tpm

import (
	"errors"
	"io/fs"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/sys/unix"
)

// CommandError is a TPM command that failed.
type CommandError struct {
	Command string         // as go-tpm names it: "tpm2.CreatePrimary"
	Auth    tpm2.TPMHandle // the hierarchy whose password it used, 0 for none
	Err     error          // a tpm2.TPMRC, or what the transport said
}

func (e *CommandError) Error() string { return e.Command + ": " + e.Err.Error() }
func (e *CommandError) Unwrap() error { return e.Err }

// failed returns nil for a nil error.
func failed(command string, auth tpm2.TPMHandle, err error) error {
	if err == nil {
		return nil
	}
	return &CommandError{Command: command, Auth: auth, Err: err}
}

// refused says whether the TPM itself answered with an error, as against no answer at all.
func refused(err error) bool {
	var rc tpm2.TPMRC
	return errors.As(err, &rc)
}

// isAny says whether err is one of the TPM's response codes given.
func isAny(err error, codes ...tpm2.TPMRC) bool {
	for _, rc := range codes {
		if errors.Is(err, rc) {
			return true
		}
	}
	return false
}

// Explain returns what err means to an administrator, and what to do about it. Both are empty for
// an error that it does not know; the hint alone is empty where nothing can be done.
func Explain(err error) (sentence, hint string) {
	if err == nil {
		return "", ""
	}
	for _, f := range faults {
		if f.is(err) {
			return f.sentence, f.hint
		}
	}
	return "", ""
}

func is(target error) func(error) bool {
	return func(err error) bool { return errors.Is(err, target) }
}

// password matches an authorization that failed with the empty password of a hierarchy.
func password(hierarchy tpm2.TPMHandle) func(error) bool {
	return func(err error) bool {
		var c *CommandError
		return errors.As(err, &c) && c.Auth == hierarchy && isAny(err, tpm2.TPMRCBadAuth, tpm2.TPMRCAuthFail)
	}
}

// Locked says whether a password, the lockout after wrong ones, or a hierarchy that is switched off
// is why the TPM refuses.
func Locked(err error) bool {
	for _, hierarchy := range []tpm2.TPMHandle{tpm2.TPMRHOwner, tpm2.TPMRHEndorsement} {
		if password(hierarchy)(err) || disabled(hierarchy)(err) {
			return true
		}
	}
	return errors.Is(err, tpm2.TPMRCLockout)
}

func disabled(hierarchy tpm2.TPMHandle) func(error) bool {
	return func(err error) bool {
		var c *CommandError
		return errors.As(err, &c) && c.Auth == hierarchy && errors.Is(err, tpm2.TPMRCHierarchy)
	}
}

// faults is in order: the first that fits is the explanation.
var faults = []struct {
	is             func(error) bool
	sentence, hint string
}{
	{is(ErrSpec), "the TPM is not named correctly", "give --tpm device:/dev/tpmrm0, swtpm:path=SOCKET or swtpm:host=HOST,port=PORT"},
	{is(ErrTPM12), "this machine has a TPM 1.2, which cannot be used", "switch the firmware's TPM to 2.0 if it offers that, or fit a TPM 2.0"},
	{is(errNoSwtpm), "there is no TPM at the place named", "start swtpm, or correct --tpm"},
	{is(ErrAbsent), "the firmware shows no TPM", "switch it on in the firmware (Intel PTT, AMD fTPM, or the discrete TPM), or fit one"},
	{is(errNoDriver), "the firmware announces a TPM, but the kernel has no device for it", "see that the kernel has its driver (tpm_crb, tpm_tis, tpm_tis_spi), in the initramfs too"},
	{is(ErrNoTPM), "there is no TPM at the place named", "enable the TPM (Intel PTT, AMD fTPM) in the firmware and see that the kernel has its driver (tpm_crb, tpm_tis, tpm_tis_spi)"},
	{is(unix.EBUSY), "another program holds the TPM", "stop it (tpm2-abrmd, another agent), or use --tpm device:/dev/tpmrm0, which can be shared"},
	{is(fs.ErrPermission), "the TPM may not be opened by this user", "run as root, or as a member of the group tss"},
	{is(unix.ENOMEM), "the kernel's TPM resource manager has no room for another object", "try again; if it stays so, reboot the node"},
	{password(tpm2.TPMRHOwner), "the TPM's owner hierarchy has a password", "clear it with 'tpm2_changeauth -c owner -p PASSWORD', or clear the TPM in the firmware"},
	{password(tpm2.TPMRHEndorsement), "the TPM's endorsement hierarchy has a password", "clear it with 'tpm2_changeauth -c endorsement -p PASSWORD'"},
	{disabled(tpm2.TPMRHOwner), "the TPM's storage (owner) hierarchy is disabled until the next boot", "enable the storage hierarchy in the firmware's TPM settings"},
	{disabled(tpm2.TPMRHEndorsement), "the TPM's endorsement hierarchy is disabled until the next boot", "enable the endorsement hierarchy in the firmware's TPM settings"},
	{is(tpm2.TPMRCLockout), "the TPM is locked after failed authorizations by some program", "reset it with 'tpm2_dictionarylockout -c', or wait for its recovery time; muster's own key needs no unlocking"},
	{is(tpm2.TPMRCFailure), "the TPM has failed its self-test and is out of order", "power the node off completely, then update the TPM's firmware or replace it"},
	{is(tpm2.TPMRCInitialize), "the TPM was not started by the firmware", "reboot the node; if it stays so, update its firmware"},
	{is(tpm2.TPMRCUpgrade), "the TPM is in the middle of a firmware upgrade", "finish the upgrade, then reboot the node"},
	{is(tpm2.TPMRCReboot), "the TPM asks for a reboot", "reboot the node"},
	{is(tpm2.TPMRCNVSpace), "the TPM's memory has no room left", "see 'tpm2_getcap handles-nv-index' and 'tpm2_getcap handles-persistent' for what can be removed"},
	{is(tpm2.TPMRCNVDefined), "something else is stored at muster's place in the TPM", "see 'tpm2_nvreadpublic', and set other nv or key slots in agent.toml"},
	{is(tpm2.TPMRCObjectMemory), "the TPM has no room for another loaded object", "use --tpm device:/dev/tpmrm0, or flush what was left behind with 'tpm2_flushcontext -t'"},
	{is(tpm2.TPMRCSessionMemory), "the TPM has no room for another session", "use --tpm device:/dev/tpmrm0, or flush what was left behind with 'tpm2_flushcontext -l'"},
	{is(tpm2.TPMRCSessionHandles), "the TPM has no room for another session", "use --tpm device:/dev/tpmrm0, or flush what was left behind with 'tpm2_flushcontext -l -s'"},
	{is(tpm2.TPMRCContextGap), "an old session blocks the TPM", "flush it with 'tpm2_flushcontext -s', or reboot the node"},
	{is(tpm2.TPMRCRetry), "the TPM stays busy", "try again later; if it stays so, power the node off and on"},
	{is(tpm2.TPMRCTesting), "the TPM keeps testing itself", "try again later; if it stays so, power the node off and on"},
	{is(tpm2.TPMRCNVRate), "the TPM slows writes to its memory down to spare it", "try again later"},
	{is(ErrNoEK), "the TPM has no endorsement key that can be used", "update the TPM's firmware; if it stays so, this TPM cannot prove itself"},
	{is(tpm2.TPMRCCurve), "the TPM does not know this key algorithm", "set another key algorithm in agent.toml (p256, rsa2048)"},
	{is(tpm2.TPMRCCommandCode), "the TPM lacks a command that is needed", "update the TPM's firmware"},
	{is(tpm2.TPMRCIntegrity), "the challenge is not for this TPM's keys", "the node asks for a new one; if it stays so, see 'muster why' on the head"},
	{is(ErrBadSignature), "the key in the TPM is not the one that the certificate names", "enrol again: 'muster-agent forget', then 'muster-agent run'"},
	{is(ErrNoSlot), "muster's key slots in the TPM hold other keys", "see 'tpm2_getcap handles-persistent', and set other key slots in agent.toml"},
	{is(tpm2.TPMRCHandle), "a key or record is gone from the TPM; it was cleared, or the slot was emptied", "enable the node again on the head ('muster certs enable'), then reboot it"},
	{is(ErrProtocol), "what answered is not a TPM 2.0", "see what --tpm names"},
}
