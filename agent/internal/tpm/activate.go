package tpm

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"muster/internal/template"
)

const nonceSize = 16

// Activate proves that key is in the TPM of ek: it opens what the head's TPM2_MakeCredential sealed
// to both (TPM2_ActivateCredential, part 3, 12.5) and returns the secret. idObject and encSecret are
// without their size fields. The EK's policy is TPM2_PolicySecret of the endorsement hierarchy, in a
// TPM2_PolicyOR for the high templates. A derived EK is flushed on every path.
//
// A challenge for another key, EK or TPM is TPM_RC_INTEGRITY (or TPM_RC_VALUE, TPM_RC_SIZE).
func (d *Device) Activate(ek *EK, key *Key, idObject, encSecret []byte) ([]byte, error) {
	defer d.unloadEK(ek)
	ekHandle := tpm2.TPMHandle(ek.Handle)
	if ekHandle == 0 {
		if err := d.ensureEK(ek); err != nil {
			return nil, err
		}
		ekHandle = ek.loaded
	}
	keyHandle, err := key.loaded()
	if err != nil {
		return nil, err
	}
	ekName, err := ek.name()
	if err != nil {
		return nil, err
	}
	session := &ekPolicy{device: d, ek: ek}
	defer session.close()
	rsp, err := tpm2.ActivateCredential{ // a policy session signs both Names: these must be true
		ActivateHandle: tpm2.AuthHandle{Handle: keyHandle, Name: tpm2.TPM2BName{Buffer: key.Name()}, Auth: tpm2.PasswordAuth(nil)},
		KeyHandle:      tpm2.AuthHandle{Handle: ekHandle, Name: *ekName, Auth: session.auth()},
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: idObject},
		Secret:         tpm2.TPM2BEncryptedSecret{Buffer: encSecret},
	}.Execute(d.tpm)
	if err != nil {
		var inner *CommandError // of the session's commands
		if errors.As(err, &inner) {
			return nil, inner
		}
		return nil, failed("tpm2.ActivateCredential", 0, err)
	}
	session.done = true
	return rsp.CertInfo.Buffer, nil
}

func (ek *EK) name() (*tpm2.TPM2BName, error) {
	pub, err := template.Parse(ek.Area)
	if err != nil {
		return nil, err
	}
	return tpm2.ObjectName(pub)
}

// ensureEK derives an EK that is not loaded, which must be the key that it was when it was listed.
func (d *Device) ensureEK(ek *EK) error {
	if ek.loaded != 0 {
		return nil
	}
	again, err := d.loadEK(ek.tmpl, ek.public)
	if err != nil {
		return err
	}
	if !bytes.Equal(again.Area, ek.Area) {
		d.unloadEK(&again)
		return fmt.Errorf("%w: the EK of template %s is not the one of its certificate", ErrNoEK, ek.Template)
	}
	ek.loaded = again.loaded
	return nil
}

// ekPolicy is a policy session for one use of an EK. The TPM itself ends it after the command that
// used it, which saves a flush, and many context swaps behind the kernel's resource manager. go-tpm's
// tpm2.Policy does not end it when one of the policy's commands fails, so that close does.
type ekPolicy struct {
	device *Device
	ek     *EK
	handle tpm2.TPMHandle // 0 until the session is started
	done   bool           // the TPM has ended it
}

func (p *ekPolicy) auth() tpm2.Session {
	return tpm2.Policy(p.ek.tmpl.Public.NameAlg, nonceSize, p.satisfy)
}

// satisfy runs the commands of the EK's policy (part 3, 23.4 and 23.6).
func (p *ekPolicy) satisfy(t transport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
	p.handle = session
	_, err := tpm2.PolicySecret{
		AuthHandle: hierarchy(tpm2.TPMRHEndorsement), PolicySession: session, NonceTPM: nonce,
	}.Execute(t)
	if err != nil {
		return failed("tpm2.PolicySecret", tpm2.TPMRHEndorsement, err)
	}
	if len(p.ek.tmpl.Branches) == 0 {
		return nil
	}
	_, err = tpm2.PolicyOr{
		PolicySession: session, PHashList: tpm2.TPMLDigest{Digests: p.ek.tmpl.Branches},
	}.Execute(t)
	return failed("tpm2.PolicyOr", 0, err)
}

// close ends a session that is still there. After a refused command go-tpm has flushed it already,
// and the TPM refuses this one: one command more on a path that failed.
func (p *ekPolicy) close() {
	if p.handle != 0 && !p.done {
		_, _ = tpm2.FlushContext{FlushHandle: p.handle}.Execute(p.device.tpm)
	}
}
