package tpm

import (
	"bytes"
	"encoding/binary"

	"github.com/google/go-tpm/tpm2"
)

// Properties is what the TPM says of itself (part 2, 6.13).
type Properties struct {
	Manufacturer string // "IFX", "INTC", "IBM"
	Firmware     [2]uint32

	NVBuffer, NVIndex uint32 // the most of one NV command, and of one index, in bytes
	PersistentFree    uint32 // an estimate, as the specification has it
	LockoutCounter    uint32

	// TPMA_PERMANENT (part 2, 8.6) and TPMA_STARTUP_CLEAR (part 2, 8.7)
	OwnerAuth, EndorsementAuth, LockoutAuth, InLockout bool
	StorageEnabled, EndorsementEnabled                 bool
}

// Properties asks the TPM for its properties (part 3, 30.2).
func (d *Device) Properties() (Properties, error) {
	v, err := d.properties(uint32(tpm2.TPMPTFamilyIndicator), 127)
	if err != nil {
		return Properties{}, err
	}
	variable, err := d.properties(uint32(tpm2.TPMPTPermanent), 127)
	if err != nil {
		return Properties{}, err
	}
	maker := binary.BigEndian.AppendUint32(nil, v[uint32(tpm2.TPMPTManufacturer)])
	permanent, startup := variable[uint32(tpm2.TPMPTPermanent)], variable[uint32(tpm2.TPMPTStartupClear)]
	return Properties{
		Manufacturer:   string(bytes.TrimRight(maker, "\x00 ")),
		Firmware:       [2]uint32{v[uint32(tpm2.TPMPTFirmwareVersion1)], v[uint32(tpm2.TPMPTFirmwareVersion2)]},
		NVBuffer:       v[uint32(tpm2.TPMPTNVBufferMax)],
		NVIndex:        v[uint32(tpm2.TPMPTNVIndexMax)],
		PersistentFree: variable[uint32(tpm2.TPMPTHRPersistentAvail)],
		LockoutCounter: variable[uint32(tpm2.TPMPTLockoutCounter)],

		OwnerAuth:          permanent&(1<<0) != 0,
		EndorsementAuth:    permanent&(1<<1) != 0,
		LockoutAuth:        permanent&(1<<2) != 0,
		InLockout:          permanent&(1<<9) != 0,
		StorageEnabled:     startup&(1<<1) != 0,
		EndorsementEnabled: startup&(1<<2) != 0,
	}, nil
}

// properties returns up to count values from first on. The TPM ends an answer with its group.
func (d *Device) properties(first, count uint32) (map[uint32]uint32, error) {
	rsp, err := tpm2.GetCapability{
		Capability: tpm2.TPMCapTPMProperties, Property: first, PropertyCount: count,
	}.Execute(d.tpm)
	if err != nil {
		return nil, failed("tpm2.GetCapability", 0, err)
	}
	list, err := rsp.CapabilityData.Data.TPMProperties()
	if err != nil {
		return nil, failed("tpm2.GetCapability", 0, err)
	}
	values := map[uint32]uint32{}
	for _, p := range list.TPMProperty {
		values[uint32(p.Property)] = p.Value
	}
	return values, nil
}
