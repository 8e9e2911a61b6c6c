package tpm

import (
	"slices"

	"github.com/google/go-tpm/tpm2"
)

const (
	firstTransient  = 0x80000000
	firstSession    = 0x02000000
	firstPersistent = 0x81000000
	firstTCGIndex   = 0x01C00000 // NV indices assigned by the TCG
	handlesPerAsk   = 64
)

// Handles is what occupies the TPM.
type Handles struct {
	Transient, Sessions, Persistent []uint32
}

// Handles lists the TPM's loaded objects, loaded sessions and persistent objects.
func (d *Device) Handles() (Handles, error) {
	var h Handles
	for first, list := range map[uint32]*[]uint32{
		firstTransient: &h.Transient, firstSession: &h.Sessions, firstPersistent: &h.Persistent,
	} {
		var err error
		if *list, err = d.handlesFrom(first); err != nil {
			return Handles{}, err
		}
	}
	return h, nil
}

// handlesFrom lists the handles of first's type, from first on (part 3, 30.2).
func (d *Device) handlesFrom(first uint32) ([]uint32, error) {
	list := []uint32{}
	for from := first; ; {
		rsp, err := tpm2.GetCapability{
			Capability: tpm2.TPMCapHandles, Property: from, PropertyCount: handlesPerAsk,
		}.Execute(d.tpm)
		if err != nil {
			return nil, failed("tpm2.GetCapability", 0, err)
		}
		handles, err := rsp.CapabilityData.Data.Handles()
		if err != nil {
			return nil, failed("tpm2.GetCapability", 0, err)
		}
		for _, h := range handles.Handle {
			list = append(list, uint32(h))
		}
		n := len(list)
		if !rsp.MoreData || len(handles.Handle) == 0 || list[n-1] < from || list[n-1]>>24 != first>>24 {
			return list, nil
		}
		from = list[n-1] + 1
	}
}

// persistentHandles asks the TPM once; makePersistent and evict keep the answer true.
func (d *Device) persistentHandles() ([]uint32, error) {
	if !d.listed {
		list, err := d.handlesFrom(firstPersistent)
		if err != nil {
			return nil, err
		}
		d.persistent, d.listed = list, true
	}
	return d.persistent, nil
}

func (d *Device) occupied(handle uint32) (bool, error) {
	list, err := d.persistentHandles()
	return slices.Contains(list, handle), err
}

// readPublic reads the public area of a loaded or persistent object (part 3, 12.4).
func (d *Device) readPublic(handle uint32) (*tpm2.TPMTPublic, error) {
	rsp, err := tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(handle)}.Execute(d.tpm)
	if err != nil {
		return nil, failed("tpm2.ReadPublic", 0, err)
	}
	pub, err := rsp.OutPublic.Contents()
	return pub, failed("tpm2.ReadPublic", 0, err)
}

// anyName stands where go-tpm wants a Name that a password authorization never sends.
var anyName = tpm2.TPM2BName{Buffer: make([]byte, 34)}

func named(h tpm2.TPMHandle) tpm2.NamedHandle {
	return tpm2.NamedHandle{Handle: h, Name: anyName}
}

// authorized is h with the empty password, which is what everything of ours has.
func authorized(h tpm2.TPMHandle) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: h, Name: anyName, Auth: tpm2.PasswordAuth(nil)}
}

func hierarchy(h tpm2.TPMHandle) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: h, Name: tpm2.HandleName(h), Auth: tpm2.PasswordAuth(nil)}
}
