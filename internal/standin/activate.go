package standin

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hmac"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// ErrIntegrity: the credential was not made for this EK and this node key.
var ErrIntegrity = errors.New("integrity check failed")

// Activate is TPM2_ActivateCredential (TPM 2.0 part 3, 12.5): it recovers the secret that
// TPM2_MakeCredential wrapped for the EK and the node key's Name. The arguments are the contents of
// TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET.
func (t *TPM) Activate(idObject, encSecret []byte) ([]byte, error) {
	// 1. The seed: ECDH with the ephemeral point, then KDFe (part 1, C.6.1 and C.8).
	seed, err := t.seed(encSecret)
	if err != nil {
		return nil, fmt.Errorf("encrypted secret: %w", err)
	}
	// 2. The outer HMAC, over the encrypted identity and the Name (part 1, 24.5).
	mac, encIdentity, err := split2B(idObject)
	if err != nil {
		return nil, fmt.Errorf("id object: %w", err)
	}
	name, err := tpm2.ObjectName(&t.area)
	if err != nil {
		return nil, err
	}
	outer := hmac.New(crypto.SHA256.New, tpm2.KDFa(crypto.SHA256, seed, "INTEGRITY", nil, nil, 256))
	outer.Write(encIdentity)
	outer.Write(name.Buffer)
	if !hmac.Equal(mac, outer.Sum(nil)) {
		return nil, fmt.Errorf("id object: %w", ErrIntegrity)
	}
	// 3. The secret, in AES-128-CFB with a zero IV (part 1, 24.4).
	block, err := aes.NewCipher(tpm2.KDFa(crypto.SHA256, seed, "STORAGE", name.Buffer, nil, 128))
	if err != nil {
		return nil, err
	}
	identity := make([]byte, len(encIdentity))
	//lint:ignore SA1019 it does not authenticate, which the HMAC does here, and a TPM has no other mode
	cipher.NewCFBDecrypter(block, make([]byte, aes.BlockSize)).XORKeyStream(identity, encIdentity)
	secret, rest, err := split2B(identity)
	if err != nil || len(rest) > 0 {
		return nil, errors.New("id object: the identity is not one TPM2B_DIGEST")
	}
	return secret, nil
}

func (t *TPM) seed(encSecret []byte) ([]byte, error) {
	point, err := tpm2.Unmarshal[tpm2.TPMSECCPoint](encSecret)
	if err != nil {
		return nil, err
	}
	parms, err := t.ekArea.Parameters.ECCDetail()
	if err != nil {
		return nil, err
	}
	ephemeral, err := tpm2.ECDHPub(parms, point)
	if err != nil {
		return nil, err
	}
	return kdfIdentity(t.ek, ephemeral)
}

func kdfIdentity(ek *ecdh.PrivateKey, ephemeral *ecdh.PublicKey) ([]byte, error) {
	z, err := ek.ECDH(ephemeral)
	if err != nil {
		return nil, err
	}
	u, _ := coordinates(ephemeral)
	v, _ := coordinates(ek.PublicKey())
	return tpm2.KDFe(crypto.SHA256, z, "IDENTITY", u, v, 256), nil
}

// split2B cuts a TPM2B from the front of b.
func split2B(b []byte) (content, rest []byte, err error) {
	if len(b) < 2 || len(b)-2 < int(b[0])<<8+int(b[1]) {
		return nil, nil, errors.New("cut short")
	}
	end := 2 + int(b[0])<<8 + int(b[1])
	return b[2:end], b[end:], nil
}
