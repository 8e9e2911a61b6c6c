package signer

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"testing"

	"muster/internal/wire"
)

// forms are the ways in which a secret may stand in a text or file.
func forms(name string, secret []byte) map[string][]byte {
	unpadded := base64.StdEncoding.EncodeToString(secret[:len(secret)/3*3]) // the same behind any alignment's start
	return map[string][]byte{
		name + ", raw":     secret,
		name + ", hex":     []byte(hex.EncodeToString(secret)),
		name + ", HEX":     bytes.ToUpper([]byte(hex.EncodeToString(secret))),
		name + ", base64":  []byte(unpadded),
		name + ", decimal": []byte(fmt.Sprint([]byte(secret))),
		name + ", Go":      []byte(fmt.Sprintf("%#v", []byte(secret))),
	}
}

// secrets are all that must never leave the head's memory and its two key files.
func (s *site) secrets() map[string][]byte {
	s.t.Helper()
	all := map[string][]byte{}
	add := func(name string, secret []byte) {
		for form, text := range forms(name, secret) {
			all[form] = text
		}
	}
	scalar, err := s.ca().key.(*ecdsa.PrivateKey).Bytes()
	s.must(err)
	add("CA key", scalar)
	all["CA key, decimal number"] = []byte(new(big.Int).SetBytes(scalar).String())
	block, _ := pem.Decode(s.file(caKeyFile))
	all["CA key, PEM"] = []byte(base64.StdEncoding.EncodeToString(block.Bytes)[:64])
	var ring struct{ Epochs []struct{ Key string } }
	s.must(json.Unmarshal(s.file(epochFile), &ring))
	for i, e := range ring.Epochs {
		key, err := hex.DecodeString(e.Key)
		s.must(err)
		add(fmt.Sprintf("epoch key %d", i), key)
	}
	return all
}

func (s *site) file(name string) []byte {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join(s.dir, name))
	s.must(err)
	return b
}

// TestNoSecretGetsOut runs all that there is, refusals included, with the log at debug, and then looks
// for the secrets in what was logged, stored, published and answered.
func TestNoSecretGetsOut(t *testing.T) {
	s, c := newSite(t), aChip(t)
	k, second := c.nodeKey(), c.nodeKey()
	secrets := s.secrets()
	var answers bytes.Buffer
	say := func(path string, message any) reply {
		r := s.post(path, message)
		answers.Write(r.body)
		return r
	}
	s.enable("n[0-1]")
	challenge := decoded[wire.Challenge](t, say(wire.PathChallenge, k.ChallengeRequest("n0")))
	secret, err := k.activate(challenge.IDObject, challenge.EncSecret)
	s.must(err)
	for form, text := range forms("secret", secret) {
		secrets[form] = text
	}
	good, err := k.answerWith("n0", challenge, secret)
	s.must(err)
	for _, spoil := range []func(*wire.EnrollRequest){
		func(r *wire.EnrollRequest) { r.Proof = nil },
		func(r *wire.EnrollRequest) { r.Slot = "n1" },
		func(r *wire.EnrollRequest) { r.Exp++ },
		func(r *wire.EnrollRequest) { r.Key = nil },
	} {
		bad := good
		spoil(&bad)
		say(wire.PathEnroll, bad)
	}
	say(wire.PathEnroll, good)
	say(wire.PathChallenge, k.ChallengeRequest("unknown"))
	say(wire.PathChallenge, aChip(t).nodeKey().ChallengeRequest("n0"))
	say(wire.PathEnroll, s.answered(second, "n0"))
	soft := softKey(t)
	password := s.invite("host9")
	for _, r := range []reply{
		s.simple("host9", password[1:], pkcs10(t, soft)),
		s.simple("nobody", password, pkcs10(t, soft)),
		s.simple("host9", password, "!"),
		s.simple("host9", password, pkcs10(t, soft)),
		s.simple("host9", password, pkcs10(t, softKey(t))),
		s.resimple(certificate(t, s.record("host9").Cert.DER), pkcs10(t, soft)),
	} {
		answers.Write(r.body)
	}
	for form, text := range forms("password", []byte(password)) {
		secrets[form] = text
	}
	secrets["password, as HTTP has it"] = []byte(base64.StdEncoding.EncodeToString([]byte("host9:" + string(password))))
	s.must(s.rotateEpoch())
	for form, text := range s.secrets() {
		secrets[form] = text
	}
	s.restart()
	s.must(s.signCRLs(context.Background()))
	s.Head.log.Error("as a careless hand may write it", "head", s.Head.verifier, "epochs", s.verifier.Epochs, "err", fmt.Errorf("%+v", s.verifier),
		"password", password, "credential", Credential{"host9", password})
	s.must(s.Head.store.Close())

	places := map[string][]byte{
		"the log": s.log.Bytes(), "an answer": answers.Bytes(), "the store": s.file("store.db"),
		"the CRL": s.ca().crl.list.Load().Raw, "public/ca.pem": s.file("public/ca.pem"),
	}
	for place, content := range places {
		if len(content) == 0 {
			t.Errorf("%s is empty", place)
		}
		for name, text := range secrets {
			if bytes.Contains(content, text) {
				t.Errorf("%s holds %s", place, name)
			}
		}
	}
	// The test itself must be able to find them.
	for name, file := range map[string]string{"CA key, PEM": caKeyFile, "epoch key 0, hex": epochFile} {
		if !bytes.Contains(bytes.ReplaceAll(s.file(file), []byte("\n"), nil), secrets[name]) {
			t.Errorf("%s is not found even in %s", name, file)
		}
	}
}

// TestFileModes: the keys are their owner's alone.
func TestFileModes(t *testing.T) {
	s := newSite(t)
	for name, want := range map[string]os.FileMode{
		"ca": 0o700, caKeyFile: 0o600, epochFile: 0o600, "public": 0o755, "public/ca.pem": 0o644,
		"public/" + s.ca().id() + ".crl": 0o644,
	} {
		info, err := os.Stat(filepath.Join(s.dir, name))
		s.must(err)
		equal(t, name, info.Mode().Perm(), want)
	}
}
