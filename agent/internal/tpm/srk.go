package tpm

import (
	"github.com/google/go-tpm/tpm2"

	"muster/internal/template"
)

// srkHandle is where the TCG has the shared storage root key (TCG TPM v2.0 Provisioning Guidance,
// 7.8), and systemd puts it.
const srkHandle = 0x81000001

// parents calls fn with a storage root key until it succeeds: with the persistent one when it is
// there and of the standard template, then with one derived. A persistent SRK of the right template
// can still be another primary, or one that can have no children (seen on AMD's fTPM after Windows),
// and only using it tells. An error that is no refusal of the TPM ends this at once.
func (d *Device) parents(fn func(parent tpm2.TPMHandle) error) error {
	there, err := d.standardSRK()
	if err != nil {
		return err
	}
	if there {
		if err := fn(srkHandle); err == nil || !refused(err) {
			return err
		}
	}
	return d.withSRK(fn)
}

// standardSRK says whether the SRK's handle holds a key of its template, whatever its unique field.
func (d *Device) standardSRK() (bool, error) {
	there, err := d.occupied(srkHandle)
	if err != nil || !there {
		return false, err
	}
	pub, err := d.readPublic(srkHandle)
	if err != nil {
		if refused(err) {
			return false, nil // gone since it was listed
		}
		return false, err
	}
	return template.IsSRK(pub), nil
}

// withSRK derives the storage root key (part 3, 24.1) for as long as fn runs.
func (d *Device) withSRK(fn func(parent tpm2.TPMHandle) error) error {
	rsp, err := d.createPrimary(tpm2.TPMRHOwner, template.SRK())
	if err != nil {
		return err
	}
	defer d.flush(rsp.ObjectHandle)
	return fn(rsp.ObjectHandle)
}

// createPrimary derives a primary object; the caller flushes it.
func (d *Device) createPrimary(parent tpm2.TPMHandle, pub tpm2.TPMTPublic) (*tpm2.CreatePrimaryResponse, error) {
	rsp, err := tpm2.CreatePrimary{PrimaryHandle: hierarchy(parent), InPublic: tpm2.New2B(pub)}.Execute(d.tpm)
	if err != nil {
		return nil, failed("tpm2.CreatePrimary", parent, err)
	}
	d.track(rsp.ObjectHandle)
	return rsp, nil
}
