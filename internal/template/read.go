package template

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"errors"
	"math/big"
	"slices"
	"sync"

	"github.com/google/go-tpm/tpm2"
)

// Public is a public area that equals one of the templates, byte for byte, but for its unique field.
type Public struct {
	Area        []byte // TPMT_PUBLIC, marshalled
	Name        []byte // nameAlg || H(Area) (TPM 2.0 part 1, 16)
	Key         crypto.PublicKey
	Fingerprint [sha256.Size]byte // SHA-256 of the SPKI
	template    *tpm2.TPMTPublic
}

// ReadNodeKey reads a node key's marshalled TPMT_PUBLIC (TPM 2.0 part 2, 12.2.4).
func ReadNodeKey(area []byte) (*Public, error) {
	p, err := read(area, nodeKeyForms())
	if errors.Is(err, errNoForm) {
		return nil, errors.New("key is not of a node key's template")
	}
	return p, err
}

// ReadEK reads an EK's marshalled TPMT_PUBLIC.
func ReadEK(area []byte) (*Public, error) {
	p, err := read(area, ekForms())
	if errors.Is(err, errNoForm) {
		return nil, errors.New("EK is not of a TCG template")
	}
	return p, err
}

// TPMT returns the area as go-tpm takes it.
func (p *Public) TPMT() tpm2.TPMTPublic {
	pub := *p.template
	switch key := p.Key.(type) {
	case *ecdsa.PublicKey:
		x, y := point(p.Area, (key.Params().BitSize+7)/8)
		pub.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: x}, Y: tpm2.TPM2BECCParameter{Buffer: y},
		})
	case *rsa.PublicKey:
		pub.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: key.N.Bytes()})
	}
	return pub
}

// form is a template in marshalled form. Reading an area is then one comparison of bytes, which is as
// strict as can be, and spares a busy head the reflection of a full unmarshalling.
type form struct {
	template tpm2.TPMTPublic
	prefix   []byte         // all before the unique field
	curve    elliptic.Curve // nil: RSA 2048
}

var errNoForm = errors.New("of no template")

var nodeKeyForms = sync.OnceValue(func() []form {
	return []form{newForm(NodeKey(P256)), newForm(NodeKey(P384)), newForm(NodeKey(RSA2048))}
})

var ekForms = sync.OnceValue(func() []form {
	var forms []form
	for _, ek := range EKs() {
		forms = append(forms, newForm(ek.Public))
	}
	return forms
})

func newForm(pub tpm2.TPMTPublic) form {
	pub.Unique = emptyUnique(pub.Type)
	f := form{template: pub, prefix: tpm2.Marshal(pub)}
	if pub.Type == tpm2.TPMAlgRSA {
		f.prefix = f.prefix[:len(f.prefix)-2] // the size of an empty TPM2B
		return f
	}
	f.prefix = f.prefix[:len(f.prefix)-4] // the sizes of two
	parms, err := pub.Parameters.ECCDetail()
	if err != nil {
		panic("template: " + err.Error())
	}
	f.curve = elliptic.P256()
	if parms.CurveID == tpm2.TPMECCNistP384 {
		f.curve = elliptic.P384()
	}
	return f
}

func read(area []byte, forms []form) (*Public, error) {
	for i := range forms {
		f := &forms[i]
		if !bytes.HasPrefix(area, f.prefix) {
			continue
		}
		key, err := f.key(area[len(f.prefix):])
		if err != nil {
			return nil, err
		}
		spki, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			return nil, err
		}
		area = slices.Clone(area)
		return &Public{area, f.name(area), key, sha256.Sum256(spki), &f.template}, nil
	}
	return nil, errNoForm
}

// key reads the unique field: two TPM2Bs of the curve's size, or one of 256 bytes.
func (f *form) key(unique []byte) (crypto.PublicKey, error) {
	if f.curve == nil {
		return readModulus(unique)
	}
	size := (f.curve.Params().BitSize + 7) / 8
	if len(unique) != 2*(2+size) || unique[0] != 0 || int(unique[1]) != size || unique[2+size] != 0 || int(unique[3+size]) != size {
		return nil, errors.New("TPMT_PUBLIC: ECC point of the wrong size")
	}
	x, y := point(unique, size)
	key, err := ecdsa.ParseUncompressedPublicKey(f.curve, slices.Concat([]byte{4}, x, y))
	if err != nil {
		return nil, errors.New("TPMT_PUBLIC: ECC point is not on its curve")
	}
	return key, nil
}

func readModulus(unique []byte) (crypto.PublicKey, error) {
	const size = 2048 / 8
	if len(unique) != 2+size || unique[0] != size>>8 || unique[1] != size&0xff {
		return nil, errors.New("TPMT_PUBLIC: RSA modulus is not of 2048 bits")
	}
	n := new(big.Int).SetBytes(unique[2:])
	if n.BitLen() != 2048 || n.Bit(0) == 0 {
		return nil, errors.New("TPMT_PUBLIC: RSA modulus is not what its size says")
	}
	return &rsa.PublicKey{N: n, E: 65537}, nil
}

// point returns the coordinates that area ends with.
func point(area []byte, size int) (x, y []byte) {
	end := len(area)
	return area[end-2*size-2 : end-size-2], area[end-size:]
}

func (f *form) name(area []byte) []byte {
	if f.template.NameAlg == tpm2.TPMAlgSHA384 {
		sum := sha512.Sum384(area)
		return append([]byte{0x00, 0x0C}, sum[:]...)
	}
	sum := sha256.Sum256(area)
	return append([]byte{0x00, 0x0B}, sum[:]...)
}
