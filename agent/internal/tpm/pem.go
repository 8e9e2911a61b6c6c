package tpm

import (
	"encoding/asn1"
	"encoding/pem"
	"errors"

	"github.com/google/go-tpm/tpm2"
)

// ErrPrimary is a primary key asked for its private blob: it has none.
var ErrPrimary = errors.New("the node key is a primary key, which has no TSS2 PRIVATE KEY file; when there is room in the TPM for another: muster-agent renew --new-key")

// oidLoadableKey is TCG's id-loadablekey (draft-bottomley-tpm2-keys).
var oidLoadableKey = asn1.ObjectIdentifier{2, 23, 133, 10, 1, 3}

// tssKey is a TPMKey of draft-bottomley-tpm2-keys, as far as OpenSSL's tpm2 provider reads one.
type tssKey struct {
	Type      asn1.ObjectIdentifier
	EmptyAuth bool  `asn1:"explicit,tag:0"` // written always: the provider asks for a pass phrase without it
	Parent    int64 // a handle with its top bit set is still positive
	Public    []byte
	Private   []byte
}

// PEM returns key as a TSS2 PRIVATE KEY file for OpenSSL's tpm2 provider and other TSS2 software on
// this node. The private blob comes from TPM2_ObjectChangeAuth (part 3, 12.8) with the same empty
// auth: the key's Name stays, and no other TPM can load it. The parent is 0x81000001 when that handle
// holds it, else the owner hierarchy, under which software derives the SRK. The error is [ErrPrimary]
// for the deterministic primary.
func (d *Device) PEM(key *Key) ([]byte, error) {
	if key.handle == 0 {
		return nil, ErrPrimary
	}
	var der []byte
	err := d.parents(func(parent tpm2.TPMHandle) error {
		rsp, err := tpm2.ObjectChangeAuth{
			ObjectHandle: authorized(tpm2.TPMHandle(key.handle)), ParentHandle: named(parent),
		}.Execute(d.tpm)
		if err != nil {
			return failed("tpm2.ObjectChangeAuth", 0, err)
		}
		if parent != srkHandle {
			parent = tpm2.TPMRHOwner
		}
		der, err = asn1.Marshal(tssKey{
			Type: oidLoadableKey, EmptyAuth: true, Parent: int64(parent),
			Public: tpm2.Marshal(tpm2.New2B(*key.area)), Private: tpm2.Marshal(rsp.OutPrivate),
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "TSS2 PRIVATE KEY", Bytes: der}), nil
}
