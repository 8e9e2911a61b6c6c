// Package template holds the TPM public areas that node and head agree on: what a node key, a
// storage root key (SRK) and an endorsement key (EK) look like, to the bit.
//
// The node creates its key from [NodeKey]; the head accepts a key only when its whole public area
// equals a listed template but for the unique field ([CheckNodeKey], [CheckEK]). That equality is
// what refuses a software key: an imported key passes TPM2_ActivateCredential, but it cannot carry
// fixedTPM, fixedParent and sensitiveDataOrigin.
package template

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// Algorithm names a node key's algorithm; its number is the one in the NV record.
type Algorithm uint8

const (
	P256    Algorithm = 1 // ECDSA on NIST P-256, the default
	P384    Algorithm = 2 // ECDSA on NIST P-384
	RSA2048 Algorithm = 3 // RSA, 2048 bits, exponent 65537
)

func (a Algorithm) String() string {
	switch a {
	case P256:
		return "p256"
	case P384:
		return "p384"
	case RSA2048:
		return "rsa2048"
	}
	return fmt.Sprintf("algorithm %d", uint8(a))
}

// ParseAlgorithm is the inverse of [Algorithm.String].
func ParseAlgorithm(s string) (Algorithm, error) {
	for _, a := range []Algorithm{P256, P384, RSA2048} {
		if s == a.String() {
			return a, nil
		}
	}
	return 0, fmt.Errorf("key algorithm %q is not one of p256, p384, rsa2048", s)
}

// NodeKey returns the public area from which a node makes its key: signing only, no policy, empty
// auth, scheme NULL as OpenSSL's tpm2 provider makes them (so that TLS 1.3 may choose RSA-PSS), and
// noDA, without which a power cut raises the TPM's lockout counter. It panics on an algorithm
// that is not one of the constants.
func NodeKey(a Algorithm) tpm2.TPMTPublic {
	pub := tpm2.TPMTPublic{
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true,
			UserWithAuth: true, NoDA: true, SignEncrypt: true,
		},
	}
	switch a {
	case P256:
		eccParms(&pub, tpm2.TPMECCNistP256, nullSymmetric())
	case P384:
		eccParms(&pub, tpm2.TPMECCNistP384, nullSymmetric())
	case RSA2048:
		rsaParms(&pub, nullSymmetric())
	default:
		panic("template: " + a.String())
	}
	return pub
}

// CheckNodeKey reports which algorithm's template pub equals but for its unique field.
func CheckNodeKey(pub *tpm2.TPMTPublic) (Algorithm, error) {
	for _, a := range []Algorithm{P256, P384, RSA2048} {
		if equalButUnique(*pub, NodeKey(a)) {
			return a, nil
		}
	}
	return 0, errors.New("key is not of a node key's template")
}

// SRK returns the TCG's storage root key template (TCG TPM v2.0 Provisioning Guidance, 7.5.1) with
// an EMPTY unique field, as systemd, OpenSSL's tpm2 provider and the TSS2 key file format use it.
// go-tpm's ECCSRKTemplate has 32 zero bytes there and so yields another key.
func SRK() tpm2.TPMTPublic {
	pub := tpm2.TPMTPublic{
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true,
			UserWithAuth: true, NoDA: true, Restricted: true, Decrypt: true,
		},
	}
	eccParms(&pub, tpm2.TPMECCNistP256, aesCFB(128))
	return pub
}

// IsSRK says whether pub is of the SRK template, whatever its unique field.
func IsSRK(pub *tpm2.TPMTPublic) bool { return equalButUnique(*pub, SRK()) }

// EK is one of the TCG's endorsement key templates (TCG EK Credential Profile, annex B).
type EK struct {
	Name   string          // the profile's own: L-1, L-2, H-1, H-2, H-3
	Kind   string          // for people: "RSA 2048", "ECC P-256", "ECC P-384"
	Public tpm2.TPMTPublic // what TPM2_CreatePrimary takes in the endorsement hierarchy
	// Cert, Nonce and Template are the NV indices of the profile; 0 where it defines none.
	Cert, Nonce, Template tpm2.TPMHandle
	// Branches are the digests for TPM2_PolicyOR after TPM2_PolicySecret(endorsement); empty where
	// PolicySecret alone satisfies the EK's policy.
	Branches []tpm2.TPM2BDigest
}

// EKs returns the templates in the order in which a node tries to derive them: ECC before RSA,
// whose derivation takes seconds on a chip.
func EKs() []EK {
	l2 := ekPublic(tpm2.TPMAlgSHA256, policyA256, false)
	eccParms(&l2, tpm2.TPMECCNistP256, aesCFB(128))
	l2.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)},
		Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)},
	})
	h2 := ekPublic(tpm2.TPMAlgSHA256, policyB256, true)
	eccParms(&h2, tpm2.TPMECCNistP256, aesCFB(128))
	h3 := ekPublic(tpm2.TPMAlgSHA384, policyB384, true)
	eccParms(&h3, tpm2.TPMECCNistP384, aesCFB(256))
	l1 := ekPublic(tpm2.TPMAlgSHA256, policyA256, false)
	rsaParms(&l1, aesCFB(128))
	l1.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: make([]byte, 256)})
	h1 := ekPublic(tpm2.TPMAlgSHA256, policyB256, true)
	rsaParms(&h1, aesCFB(128))

	or256 := []tpm2.TPM2BDigest{{Buffer: policyA256}, {Buffer: policyC256}}
	or384 := []tpm2.TPM2BDigest{{Buffer: policyA384}, {Buffer: policyC384}}
	return []EK{
		{Name: "L-2", Kind: "ECC P-256", Public: l2, Cert: 0x01C0000A, Nonce: 0x01C0000B, Template: 0x01C0000C},
		{Name: "H-2", Kind: "ECC P-256", Public: h2, Cert: 0x01C00014, Branches: or256},
		{Name: "H-3", Kind: "ECC P-384", Public: h3, Cert: 0x01C00016, Branches: or384},
		{Name: "L-1", Kind: "RSA 2048", Public: l1, Cert: 0x01C00002, Nonce: 0x01C00003, Template: 0x01C00004},
		{Name: "H-1", Kind: "RSA 2048", Public: h1, Cert: 0x01C00012, Branches: or256},
	}
}

// CheckEK reports which EK template pub equals but for its unique field.
func CheckEK(pub *tpm2.TPMTPublic) (EK, error) {
	for _, ek := range EKs() {
		if equalButUnique(*pub, ek.Public) {
			return ek, nil
		}
	}
	return EK{}, errors.New("EK is not of a TCG template")
}

// Parse reads a marshalled TPMT_PUBLIC (TPM 2.0 part 2, 12.2.4) strictly: what it returns marshals
// to exactly b again, an ECC point is on its curve, an RSA modulus has 2048 to 4096 bits and the
// default exponent 65537.
func Parse(b []byte) (*tpm2.TPMTPublic, error) {
	pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](b)
	if err != nil {
		return nil, fmt.Errorf("TPMT_PUBLIC: %v", err)
	}
	if !bytes.Equal(tpm2.Marshal(*pub), b) {
		return nil, errors.New("TPMT_PUBLIC: not in its canonical form")
	}
	if _, err := Key(pub); err != nil {
		return nil, err
	}
	return pub, nil
}

// Key returns the *ecdsa.PublicKey or *rsa.PublicKey that pub describes.
func Key(pub *tpm2.TPMTPublic) (crypto.PublicKey, error) {
	switch pub.Type {
	case tpm2.TPMAlgECC:
		return eccKey(pub)
	case tpm2.TPMAlgRSA:
		return rsaKey(pub)
	}
	return nil, fmt.Errorf("TPMT_PUBLIC: type %#04x is neither ECC nor RSA", uint16(pub.Type))
}

func eccKey(pub *tpm2.TPMTPublic) (*ecdsa.PublicKey, error) {
	parms, err := pub.Parameters.ECCDetail()
	if err != nil {
		return nil, fmt.Errorf("TPMT_PUBLIC: %v", err)
	}
	point, err := pub.Unique.ECC()
	if err != nil {
		return nil, fmt.Errorf("TPMT_PUBLIC: %v", err)
	}
	var curve elliptic.Curve
	switch parms.CurveID {
	case tpm2.TPMECCNistP256:
		curve = elliptic.P256()
	case tpm2.TPMECCNistP384:
		curve = elliptic.P384()
	default:
		return nil, fmt.Errorf("TPMT_PUBLIC: curve %#04x is neither P-256 nor P-384", uint16(parms.CurveID))
	}
	size := (curve.Params().BitSize + 7) / 8
	if len(point.X.Buffer) != size || len(point.Y.Buffer) != size {
		return nil, errors.New("TPMT_PUBLIC: ECC point of the wrong size")
	}
	raw := append(append([]byte{4}, point.X.Buffer...), point.Y.Buffer...)
	key, err := ecdsa.ParseUncompressedPublicKey(curve, raw)
	if err != nil {
		return nil, errors.New("TPMT_PUBLIC: ECC point is not on its curve")
	}
	return key, nil
}

func rsaKey(pub *tpm2.TPMTPublic) (*rsa.PublicKey, error) {
	parms, err := pub.Parameters.RSADetail()
	if err != nil {
		return nil, fmt.Errorf("TPMT_PUBLIC: %v", err)
	}
	modulus, err := pub.Unique.RSA()
	if err != nil {
		return nil, fmt.Errorf("TPMT_PUBLIC: %v", err)
	}
	if parms.Exponent != 0 && parms.Exponent != 65537 {
		return nil, errors.New("TPMT_PUBLIC: RSA exponent is not 65537")
	}
	if parms.KeyBits < 2048 || parms.KeyBits > 4096 || len(modulus.Buffer) != int(parms.KeyBits)/8 {
		return nil, errors.New("TPMT_PUBLIC: RSA modulus is not of 2048 to 4096 bits")
	}
	key, err := tpm2.RSAPub(parms, modulus)
	if err != nil {
		return nil, fmt.Errorf("TPMT_PUBLIC: %v", err)
	}
	if key.N.BitLen() != int(parms.KeyBits) || key.N.Bit(0) == 0 {
		return nil, errors.New("TPMT_PUBLIC: RSA modulus is not what its size says")
	}
	return key, nil
}

// Fingerprint is the identity of an EK, and of any key here: SHA-256 of its
// SubjectPublicKeyInfo (RFC 5280, 4.1.2.7), never of a certificate.
func Fingerprint(pub *tpm2.TPMTPublic) ([sha256.Size]byte, error) {
	key, err := Key(pub)
	if err != nil {
		return [sha256.Size]byte{}, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return [sha256.Size]byte{}, err
	}
	return sha256.Sum256(spki), nil
}

// equalButUnique compares marshalled forms, so that no field can be forgotten.
func equalButUnique(a, b tpm2.TPMTPublic) bool {
	if a.Type != b.Type {
		return false
	}
	empty := emptyUnique(a.Type)
	a.Unique, b.Unique = empty, empty
	return bytes.Equal(tpm2.Marshal(a), tpm2.Marshal(b))
}

func emptyUnique(t tpm2.TPMAlgID) tpm2.TPMUPublicID {
	if t == tpm2.TPMAlgRSA {
		return tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{})
	}
	return tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
}

func eccParms(pub *tpm2.TPMTPublic, curve tpm2.TPMECCCurve, sym tpm2.TPMTSymDefObject) {
	pub.Type = tpm2.TPMAlgECC
	pub.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
		Symmetric: sym,
		Scheme:    tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgNull},
		CurveID:   curve,
		KDF:       tpm2.TPMTKDFScheme{Scheme: tpm2.TPMAlgNull},
	})
	pub.Unique = emptyUnique(tpm2.TPMAlgECC)
}

func rsaParms(pub *tpm2.TPMTPublic, sym tpm2.TPMTSymDefObject) {
	pub.Type = tpm2.TPMAlgRSA
	pub.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
		Symmetric: sym,
		Scheme:    tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgNull},
		KeyBits:   2048,
	})
	pub.Unique = emptyUnique(tpm2.TPMAlgRSA)
}

func nullSymmetric() tpm2.TPMTSymDefObject {
	return tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull}
}

func aesCFB(bits tpm2.TPMKeyBits) tpm2.TPMTSymDefObject {
	return tpm2.TPMTSymDefObject{
		Algorithm: tpm2.TPMAlgAES,
		KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, bits),
		Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
	}
}

func ekPublic(nameAlg tpm2.TPMAlgID, policy []byte, userWithAuth bool) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		NameAlg: nameAlg,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true,
			UserWithAuth: userWithAuth, AdminWithPolicy: true, Restricted: true, Decrypt: true,
		},
		AuthPolicy: tpm2.TPM2BDigest{Buffer: policy},
	}
}

// The policies of the TCG EK Credential Profile, B.6: A is PolicySecret(TPM_RH_ENDORSEMENT), C is
// PolicyAuthorizeNV of index 0x01C07F01 (SHA-256) or 0x01C07F02 (SHA-384), B is PolicyOR(A, C).
var (
	policyA256 = unhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
	policyB256 = unhex("ca3d0a99a2b93906f7a3342414efcfb3a385d44cd1fd459089d19b5071c0b7a0")
	policyC256 = unhex("3767e2edd43ff45a3a7e1eaefcef78643dca964632e7aad82c673a30d8633fde")
	policyA384 = unhex("8bbf2266537c171cb56e403c4dc1d4b64f432611dc386e6f532050c3278c930e143e8bb1133824ccb431053871c6db53")
	policyB384 = unhex("b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12")
	policyC384 = unhex("d6032ce61f2fb3c240eb3cf6a33237ef2b6a16f4293c22b455e261cffd217ad5b4947c2d73e63005eed2dc2b3593d165")
)

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic("template: " + err.Error())
	}
	return b
}
