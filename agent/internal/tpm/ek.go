package tpm

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"muster/internal/template"
)

// EK is an endorsement key of this TPM.
type EK struct {
	Area        []byte   // TPMT_PUBLIC (part 2, 12.2.4)
	Fingerprint [32]byte // SHA-256 of its SubjectPublicKeyInfo: its identity
	Kind        string   // for people: "ECC P-256"
	Template    string   // the profile's name of its template: "L-2"
	Handle      uint32   // persistent handle, or 0 when it is derived
	Certs       [][]byte // DER; evidence that is there or not

	tmpl   template.EK
	public tpm2.TPMTPublic // what CreatePrimary takes to derive it
	loaded tpm2.TPMHandle  // the derived object, 0 when it is not loaded
}

// firstEK to lastEK are the persistent handles of endorsement keys (TCG Registry of Reserved TPM
// 2.0 Handles).
const (
	firstEK = 0x81010000
	lastEK  = 0x8101FFFF
)

// ErrNoEK is a TPM that can make no endorsement key of a TCG template.
var ErrNoEK = errors.New("the TPM has no endorsement key of a TCG template")

// WithEKs calls fn with the TPM's endorsement keys, the one to prefer first: every persistent one of
// a TCG template, ECC before RSA; when there is none, one that it derives, ECC if the TPM can, RSA
// else. A derived key stays loaded while fn runs, until [Device.Activate] has used it.
//
// With withCerts it reads their certificates from NV. When the derived key has none but another
// template's key has one, that key is listed too, its public area taken from the certificate; it is
// derived only when Activate needs it.
func (d *Device) WithEKs(withCerts bool, fn func([]EK) error) error {
	eks, err := d.persistentEKs(withCerts)
	if err != nil {
		return err
	}
	if len(eks) == 0 {
		if eks, err = d.derivedEKs(withCerts); err != nil {
			return err
		}
	}
	defer func() {
		for i := range eks {
			d.unloadEK(&eks[i])
		}
	}()
	return fn(eks)
}

// EKs is [Device.WithEKs] for who only looks: nothing stays loaded. Activate derives again.
func (d *Device) EKs(withCerts bool) ([]EK, error) {
	var list []EK
	err := d.WithEKs(withCerts, func(eks []EK) error { list = eks; return nil })
	return list, err
}

func (d *Device) unloadEK(ek *EK) {
	if ek.loaded != 0 {
		d.flush(ek.loaded)
		ek.loaded = 0
	}
}

func (d *Device) persistentEKs(withCerts bool) ([]EK, error) {
	handles, err := d.persistentHandles()
	if err != nil {
		return nil, err
	}
	var eks []EK
	for _, handle := range handles {
		if handle < firstEK || handle > lastEK {
			continue
		}
		pub, err := d.readPublic(handle)
		if refused(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		ek, err := newEK(pub)
		if err != nil {
			continue // somebody's own kind of key
		}
		ek.Handle = handle
		eks = append(eks, ek)
	}
	slices.SortStableFunc(eks, func(a, b EK) int { return b.ecc() - a.ecc() })
	for i := range eks {
		if !withCerts {
			break
		}
		if err := d.addCert(&eks[i]); err != nil {
			return nil, err
		}
	}
	return eks, nil
}

func (ek *EK) ecc() int {
	if ek.tmpl.Public.Type == tpm2.TPMAlgECC {
		return 1
	}
	return 0
}

// newEK describes a key whose public area is of a TCG template.
func newEK(pub *tpm2.TPMTPublic) (EK, error) {
	tmpl, err := template.CheckEK(pub)
	if err != nil {
		return EK{}, err
	}
	fingerprint, err := template.Fingerprint(pub)
	if err != nil {
		return EK{}, err
	}
	return EK{
		Area: tpm2.Marshal(*pub), Fingerprint: fingerprint, Kind: tmpl.Kind, Template: tmpl.Name,
		tmpl: tmpl, public: tmpl.Public,
	}, nil
}

// addCert reads the certificate of ek's template and keeps it when it is this key's.
func (d *Device) addCert(ek *EK) error {
	der, key, err := d.readCert(uint32(ek.tmpl.Cert))
	if err != nil || der == nil {
		return err
	}
	if fingerprint, err := fingerprintOf(key); err == nil && fingerprint == ek.Fingerprint {
		ek.Certs = append(ek.Certs, der)
	}
	return nil
}

// derivedEKs derives the first template that the TPM knows, and finds the certificates.
//
// The certificate is read before the key is loaded: the kernel's resource manager swaps every loaded
// object around each command.
func (d *Device) derivedEKs(withCerts bool) ([]EK, error) {
	var refusal error
	for _, tmpl := range template.EKs() {
		var evidence evidence
		if withCerts {
			var err error
			if evidence, err = d.evidenceFor(tmpl); err != nil {
				return nil, err
			}
		}
		ek, err := d.deriveEK(tmpl, evidence.cert, evidence.key)
		if err == nil {
			return append([]EK{ek}, evidence.others...), nil
		}
		if !refused(err) || errors.Is(err, tpm2.TPMRCHierarchy) || isAny(err, tpm2.TPMRCBadAuth, tpm2.TPMRCAuthFail) {
			return nil, err
		}
		if refusal == nil {
			refusal = err
		}
	}
	return nil, fmt.Errorf("%w: %w", ErrNoEK, refusal)
}

// evidence is the certificate of a template's key, or the keys of other templates that have one.
type evidence struct {
	cert   []byte
	key    crypto.PublicKey
	others []EK
}

func (d *Device) evidenceFor(tmpl template.EK) (e evidence, err error) {
	e.cert, e.key, err = d.readCert(uint32(tmpl.Cert))
	if err == nil && e.cert == nil {
		e.others, err = d.certifiedEKs(tmpl.Name)
	}
	return e, err
}

// certifiedEKs lists the keys of other templates than but that have a certificate in NV.
func (d *Device) certifiedEKs(but string) ([]EK, error) {
	indices, err := d.handlesFrom(firstTCGIndex)
	if err != nil {
		return nil, err
	}
	var eks []EK
	for _, tmpl := range template.EKs() {
		if tmpl.Name == but || !slices.Contains(indices, uint32(tmpl.Cert)) {
			continue
		}
		cert, key, err := d.readCert(uint32(tmpl.Cert))
		if err != nil {
			return nil, err
		}
		pub, err := publicOf(tmpl, key)
		if cert == nil || err != nil {
			continue
		}
		ek, err := newEK(pub)
		if err != nil {
			continue
		}
		ek.Certs = [][]byte{cert}
		eks = append(eks, ek)
	}
	return eks, nil
}

// deriveEK derives tmpl's key and leaves it loaded. When the certificate is for another key, the
// manufacturer used the template or nonce of NV (TCG EK Credential Profile, 2.2.1.4), and that key is
// the endorsement key. A certificate that fits neither is not evidence of anything.
func (d *Device) deriveEK(tmpl template.EK, cert []byte, certKey crypto.PublicKey) (EK, error) {
	ek, err := d.loadEK(tmpl, tmpl.Public)
	if err != nil || cert == nil {
		return ek, err
	}
	want, err := fingerprintOf(certKey)
	if err != nil {
		return ek, nil
	}
	if ek.Fingerprint == want {
		ek.Certs = [][]byte{cert}
		return ek, nil
	}
	for _, public := range d.nonStandard(tmpl) {
		other, err := d.loadEK(tmpl, public)
		if err != nil && !refused(err) {
			d.unloadEK(&ek)
			return EK{}, err
		}
		if err == nil && other.Fingerprint == want {
			d.unloadEK(&ek)
			other.Certs = [][]byte{cert}
			return other, nil
		}
		d.unloadEK(&other)
	}
	return ek, nil
}

// loadEK derives public, which is tmpl's but for its unique field.
func (d *Device) loadEK(tmpl template.EK, public tpm2.TPMTPublic) (EK, error) {
	rsp, err := d.createPrimary(tpm2.TPMRHEndorsement, public)
	if err != nil {
		return EK{}, err
	}
	var ek EK
	pub, err := rsp.OutPublic.Contents()
	if err == nil {
		ek, err = newEK(pub)
	}
	if err == nil && ek.Template != tmpl.Name {
		err = errors.New("the TPM made another key than it was asked for")
	}
	if err != nil {
		d.flush(rsp.ObjectHandle)
		return EK{}, failed("tpm2.CreatePrimary", tpm2.TPMRHEndorsement, err)
	}
	ek.public, ek.loaded = public, rsp.ObjectHandle
	return ek, nil
}

// nonStandard returns what the template and nonce indices make of tmpl, as far as they exist. A
// template of other attributes would be no EK that the head accepts.
func (d *Device) nonStandard(tmpl template.EK) []tpm2.TPMTPublic {
	if tmpl.Template == 0 {
		return nil
	}
	var list []tpm2.TPMTPublic
	if pub := d.readTemplate(tmpl); pub != nil {
		list = append(list, *pub)
	}
	nonce, err := d.readIndex(uint32(tmpl.Nonce))
	if err != nil || len(nonce) == 0 {
		return list
	}
	for i := range list {
		list[i] = withNonce(list[i], nonce)
	}
	return append(list, withNonce(tmpl.Public, nonce))
}

func (d *Device) readTemplate(tmpl template.EK) *tpm2.TPMTPublic {
	b, err := d.readIndex(uint32(tmpl.Template))
	if err != nil {
		return nil
	}
	pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](b)
	if err != nil {
		return nil
	}
	if known, err := template.CheckEK(pub); err != nil || known.Name != tmpl.Name {
		return nil
	}
	return pub
}

// withNonce puts the EK nonce at the start of the unique field, padded with zeros to the size of the
// key (TCG EK Credential Profile, 2.2.1.4).
func withNonce(pub tpm2.TPMTPublic, nonce []byte) tpm2.TPMTPublic {
	pad := func(size int) []byte {
		return append(bytes.Clone(nonce[:min(len(nonce), size)]), make([]byte, size-min(len(nonce), size))...)
	}
	if pub.Type == tpm2.TPMAlgRSA {
		pub.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: pad(256)})
		return pub
	}
	pub.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: pad(32)}, Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)},
	})
	return pub
}
