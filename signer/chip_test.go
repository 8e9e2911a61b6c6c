package signer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"math/big"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"muster/internal/template"
	"muster/internal/testtpm"
	"muster/internal/wire"
)

// chip is a real TPM (swtpm) with a persistent EK and SRK. It may be used by several goroutines.
type chip struct {
	t    testing.TB
	next tpm2.TPMHandle // persistent handle of the next key
	eks  []endorsement
	srk  tpm2.TPMTPublic

	mu   sync.Mutex
	link transport.TPMCloser
}

// endorsement is a persistent EK.
type endorsement struct {
	area   tpm2.TPMTPublic
	handle tpm2.TPMHandle
}

const (
	firstEK   = 0x81010016
	srkHandle = 0x81000001
	firstKey  = 0x81004E00
)

// newChip starts a TPM whose EK is of the given template.
func newChip(t testing.TB, ek template.EK) *chip {
	t.Helper()
	link, err := testtpm.Start(t).Dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { link.Close() })
	c := &chip{t: t, link: link, next: firstKey}
	c.addEK(ek)
	c.srk = *c.primary(tpm2.TPMRHOwner, template.SRK(), srkHandle)
	return c
}

// aChip is a TPM with the EK that nodes prefer: ECC P-256, template L-2.
func aChip(t testing.TB) *chip {
	t.Helper()
	return newChip(t, template.EKs()[0])
}

// addEK makes one more EK, which later keys enrol with.
func (c *chip) addEK(ek template.EK) {
	c.t.Helper()
	handle := tpm2.TPMHandle(firstEK + len(c.eks))
	c.eks = append(c.eks, endorsement{*c.primary(tpm2.TPMRHEndorsement, ek.Public, handle), handle})
}

// ek is the newest EK.
func (c *chip) ek() *endorsement { return &c.eks[len(c.eks)-1] }

// Send sends again what the TPM had no time for.
func (c *chip) Send(command []byte) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		response, err := c.link.Send(command)
		if err != nil || len(response) < 10 || tpm2.TPMRC(binary.BigEndian.Uint32(response[6:])) != tpm2.TPMRCRetry {
			return response, err
		}
	}
}

func (c *chip) must(what string, err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatalf("%s: %v", what, err)
	}
}

// primary derives an object and makes it persistent.
func (c *chip) primary(hierarchy tpm2.TPMHandle, pub tpm2.TPMTPublic, at tpm2.TPMHandle) *tpm2.TPMTPublic {
	c.t.Helper()
	rsp, err := tpm2.CreatePrimary{PrimaryHandle: hierarchy, InPublic: tpm2.New2B(pub)}.Execute(c)
	c.must("tpm2.CreatePrimary", err)
	out, err := rsp.OutPublic.Contents()
	c.must("tpm2.CreatePrimary", err)
	c.keep(rsp.ObjectHandle, out, at)
	return out
}

// keep makes a loaded object persistent.
func (c *chip) keep(object tpm2.TPMHandle, pub *tpm2.TPMTPublic, at tpm2.TPMHandle) {
	c.t.Helper()
	_, err := tpm2.EvictControl{
		Auth: tpm2.TPMRHOwner, ObjectHandle: tpm2.NamedHandle{Handle: object, Name: nameOf(pub)}, PersistentHandle: at,
	}.Execute(c)
	c.must("tpm2.EvictControl", err)
	_, err = tpm2.FlushContext{FlushHandle: object}.Execute(c)
	c.must("tpm2.FlushContext", err)
}

// key makes a child of the SRK.
func (c *chip) key(pub tpm2.TPMTPublic) *key {
	c.t.Helper()
	rsp, err := tpm2.CreateLoaded{
		ParentHandle: authorized(srkHandle, &c.srk), InPublic: tpm2.New2BTemplate(&pub),
	}.Execute(c)
	c.must("tpm2.CreateLoaded", err)
	out, err := rsp.OutPublic.Contents()
	c.must("tpm2.CreateLoaded", err)
	return c.keyOf(rsp.ObjectHandle, out)
}

// nodeKey makes a node key as the agent does.
func (c *chip) nodeKey() *key {
	c.t.Helper()
	return c.key(template.NodeKey(template.P256))
}

func (c *chip) keyOf(object tpm2.TPMHandle, area *tpm2.TPMTPublic) *key {
	c.t.Helper()
	k := &key{chip: c, ek: *c.ek(), handle: c.next, area: *area}
	c.keep(object, area, k.handle)
	c.next++
	var err error
	k.public, err = template.Key(area)
	c.must("public key", err)
	if area.ObjectAttributes.SignEncrypt && !area.ObjectAttributes.Restricted && area.ObjectAttributes.UserWithAuth {
		k.csr = csrBy(c.t, k)
	}
	return k
}

func csrBy(t testing.TB, signer crypto.Signer) []byte {
	t.Helper()
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, signer)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

// softKey imports a software key with the attributes that it honestly has (TPM2_Import, part 3,
// 13.3), as tpm2_import does.
func (c *chip) softKey() *key {
	c.t.Helper()
	soft, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	c.must("software key", err)
	scalar, err := soft.Bytes()
	c.must("software key", err)
	point, err := soft.PublicKey.Bytes() // 0x04 || X || Y
	c.must("software key", err)
	pub := template.NodeKey(template.P256)
	pub.ObjectAttributes.FixedTPM, pub.ObjectAttributes.FixedParent, pub.ObjectAttributes.SensitiveDataOrigin = false, false, false
	pub.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
	})
	secret := tpm2.TPMTSensitive{
		SensitiveType: tpm2.TPMAlgECC,
		Sensitive:     tpm2.NewTPMUSensitiveComposite(tpm2.TPMAlgECC, &tpm2.TPM2BECCParameter{Buffer: scalar}),
	}
	parent := authorized(srkHandle, &c.srk)
	imported, err := tpm2.Import{
		ParentHandle: parent, ObjectPublic: tpm2.New2B(pub),
		Duplicate: tpm2.TPM2BPrivate{Buffer: tpm2.Marshal(tpm2.New2B(secret))},
		Symmetric: tpm2.TPMTSymDef{Algorithm: tpm2.TPMAlgNull},
	}.Execute(c)
	c.must("tpm2.Import", err)
	loaded, err := tpm2.Load{ParentHandle: parent, InPrivate: imported.OutPrivate, InPublic: tpm2.New2B(pub)}.Execute(c)
	c.must("tpm2.Load", err)
	return c.keyOf(loaded.ObjectHandle, &pub)
}

func (e endorsement) hash(t testing.TB) string {
	t.Helper()
	return fingerprint(t, &e.area)
}

func fingerprint(t testing.TB, area *tpm2.TPMTPublic) string {
	t.Helper()
	sum, err := template.Fingerprint(area)
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(sum[:])
}

// key is a key in a chip. With the methods of a standin it can play a node.
type key struct {
	chip   *chip
	ek     endorsement // that it enrols with
	handle tpm2.TPMHandle
	area   tpm2.TPMTPublic
	public crypto.PublicKey
	csr    []byte
	renews bool // its answers are for /v1/renew
}

// renewing is k as it asks for a renewal.
func (k *key) renewing() *key {
	r := *k
	r.renews = true
	return &r
}

func (k *key) purpose() string {
	if k.renews {
		return wire.PurposeRenew
	}
	return wire.PurposeEnroll
}

func (k *key) Public() crypto.PublicKey { return k.public }
func (k *key) Signer() crypto.Signer    { return k }
func (k *key) hash() string             { return fingerprint(k.chip.t, &k.area) }
func (k *key) ekHash() string           { return k.ek.hash(k.chip.t) }

func nameOf(area *tpm2.TPMTPublic) tpm2.TPM2BName {
	name, err := tpm2.ObjectName(area)
	if err != nil {
		panic(err)
	}
	return *name
}

func authorized(h tpm2.TPMHandle, area *tpm2.TPMTPublic) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: h, Name: nameOf(area), Auth: tpm2.PasswordAuth(nil)}
}

// Sign implements crypto.Signer with TPM2_Sign.
func (k *key) Sign(_ io.Reader, digest []byte, _ crypto.SignerOpts) ([]byte, error) {
	rsp, err := tpm2.Sign{
		KeyHandle: authorized(k.handle, &k.area),
		Digest:    tpm2.TPM2BDigest{Buffer: digest},
		InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgECDSA,
			Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256})},
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
	}.Execute(k.chip)
	if err != nil {
		return nil, err
	}
	sig, err := rsp.Signature.Signature.ECDSA()
	if err != nil {
		return nil, err
	}
	integer := func(b tpm2.TPM2BECCParameter) *big.Int { return new(big.Int).SetBytes(b.Buffer) }
	return asn1.Marshal(struct{ R, S *big.Int }{integer(sig.SignatureR), integer(sig.SignatureS)})
}

// activate is TPM2_ActivateCredential (part 3, 12.5).
func (k *key) activate(idObject, encSecret []byte) ([]byte, error) {
	tmpl, err := template.CheckEK(&k.ek.area)
	if err != nil {
		return nil, err
	}
	session := tpm2.Policy(k.ek.area.NameAlg, 16, func(t transport.TPM, s tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
		_, err := tpm2.PolicySecret{AuthHandle: tpm2.TPMRHEndorsement, PolicySession: s, NonceTPM: nonce}.Execute(t)
		if err != nil || len(tmpl.Branches) == 0 {
			return err
		}
		_, err = tpm2.PolicyOr{PolicySession: s, PHashList: tpm2.TPMLDigest{Digests: tmpl.Branches}}.Execute(t)
		return err
	})
	rsp, err := tpm2.ActivateCredential{
		ActivateHandle: authorized(k.handle, &k.area),
		KeyHandle:      tpm2.AuthHandle{Handle: k.ek.handle, Name: nameOf(&k.ek.area), Auth: session},
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: idObject},
		Secret:         tpm2.TPM2BEncryptedSecret{Buffer: encSecret},
	}.Execute(k.chip)
	if err != nil {
		return nil, err
	}
	return rsp.CertInfo.Buffer, nil
}

// ChallengeRequest is leg 1 of a node that believes to be called node.
func (k *key) ChallengeRequest(node string) wire.ChallengeRequest {
	return wire.ChallengeRequest{
		V: wire.Version, Node: node, EKs: []wire.EK{{Pub: tpm2.Marshal(k.ek.area)}}, Key: tpm2.Marshal(k.area), CSR: k.csr,
	}
}

// Answer is leg 2.
func (k *key) Answer(node string, c wire.Challenge) (wire.EnrollRequest, error) {
	secret, err := k.activate(c.IDObject, c.EncSecret)
	if err != nil {
		return wire.EnrollRequest{}, err
	}
	return k.answerWith(node, c, secret)
}

// answerWith is leg 2 of who got hold of a secret, rightly or not.
func (k *key) answerWith(node string, c wire.Challenge, secret []byte) (wire.EnrollRequest, error) {
	if c.EK != k.ekHash() {
		return wire.EnrollRequest{}, errors.New("a challenge for another EK")
	}
	ek, err := template.Fingerprint(&k.ek.area)
	if err != nil {
		return wire.EnrollRequest{}, err
	}
	transcript := wire.Transcript{
		Cluster: c.Cluster, Purpose: k.purpose(), Grant: c.Grant, Slot: c.Slot, Exp: c.Exp, Epoch: c.Epoch,
		EK: ek, EKName: nameOf(&k.ek.area).Buffer, KeyName: nameOf(&k.area).Buffer, CSR: sha256.Sum256(k.csr), Level: c.Level,
	}
	return wire.EnrollRequest{
		V: wire.Version, Node: node, EKs: []wire.EK{{Pub: tpm2.Marshal(k.ek.area)}}, Key: tpm2.Marshal(k.area), CSR: k.csr,
		Exp: c.Exp, Epoch: c.Epoch, Slot: c.Slot, Level: c.Level, EK: c.EK, Proof: transcript.Proof(secret),
	}, nil
}
