package tpm

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"muster/internal/template"
	"muster/internal/testtpm"
)

var algorithms = []template.Algorithm{template.P256, template.P384, template.RSA2048}

func nodeKey(t *testing.T, d *Device, alg template.Algorithm) *Key {
	t.Helper()
	key, _, err := d.NodeKey(DefaultSlots, alg)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestNodeKeyIsOfItsTemplate(t *testing.T) {
	for _, alg := range algorithms {
		t.Run(alg.String(), func(t *testing.T) {
			m := testtpm.Start(t)
			d := New(dial(t, m))
			key, created, err := d.NodeKey(DefaultSlots, alg)
			if err != nil || !created || key.Slot() != 0 || key.Handle() != DefaultSlots.Keys[0] {
				t.Fatalf("NodeKey = %+v, %v, %v", key, created, err)
			}
			pub, err := d.readPublic(key.Handle())
			if err != nil {
				t.Fatal(err)
			}
			if got, err := template.CheckNodeKey(pub); err != nil || got != alg {
				t.Errorf("the key in the TPM: %v, %v", got, err)
			}
			if !bytes.Equal(tpm2.Marshal(*pub), key.Area()) {
				t.Error("Area is not what the TPM has")
			}
			signs(t, key)
			again, created, err := New(dial(t, m)).NodeKey(DefaultSlots, alg)
			if err != nil || created || !bytes.Equal(again.Name(), key.Name()) {
				t.Errorf("the second NodeKey: created %v, %v", created, err)
			}
			d.Close()
			idle(t, d)
		})
	}
}

// signs checks every way of signing that the key has.
func signs(t *testing.T, key *Key) {
	t.Helper()
	if _, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key); err != nil {
		t.Error(err)
	}
	short, long := sha256.Sum256([]byte("x")), sha512.Sum384([]byte("x"))
	if _, err := key.Sign(nil, long[:], crypto.SHA384); err != nil {
		t.Error(err)
	}
	pss := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
	sig, err := key.Sign(nil, short[:], pss)
	if pub, ok := key.Public().(*rsa.PublicKey); !ok && err == nil {
		t.Error("an ECC key signs PSS")
	} else if ok && (err != nil || rsa.VerifyPSS(pub, crypto.SHA256, short[:], sig, pss) != nil) {
		t.Errorf("PSS: %v", err)
	}
	for _, opts := range []crypto.SignerOpts{crypto.SHA384, crypto.Hash(0), crypto.SHA1} {
		if _, err := key.Sign(nil, short[:], opts); err == nil {
			t.Errorf("signs 32 bytes as %v", opts)
		}
	}
}

// TestAttributesByTPM2Tools lets another program judge.
func TestAttributesByTPM2Tools(t *testing.T) {
	testtpm.Need(t, "tpm2_readpublic")
	m := testtpm.Start(t, testtpm.TCP())
	d := open(t, m)
	nodeKey(t, d, template.P256)
	d.Close()
	out := run(t, m, "tpm2_readpublic", "-c", "0x81004E00")
	for _, want := range []string{
		"value: fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign\n",
		"name-alg:\n  value: sha256", "curve-id:\n  value: NIST p256", "scheme:\n  value: null",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("tpm2_readpublic lacks %q:\n%s", want, out)
		}
	}
	if strings.Contains(out, "authorization policy") {
		t.Errorf("the key has a policy:\n%s", out)
	}
}

// run runs a program of tpm2-tools.
func run(t *testing.T, m *testtpm.TPM, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = m.Dir()
	cmd.Env = append(cmd.Environ(), "TPM2TOOLS_TCTI="+m.Spec(), "TPM2OPENSSL_TCTI="+m.Spec(), "TSS2_LOG=all+NONE")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestPowerCutWhileMakingAKey cuts at every command: afterwards one key is adopted or made, and the
// TPM has counted no failure.
func TestPowerCutWhileMakingAKey(t *testing.T) {
	for _, after := range []bool{false, true} {
		for k := 1; ; k++ {
			m := testtpm.Start(t)
			killer := m.CutPower(dial(t, m), k, after)
			d := New(killer)
			_, _, err := d.NodeKey(DefaultSlots, template.P256)
			d.Close()
			if !killer.Fired() {
				if err != nil || k < 6 {
					t.Fatalf("a run without a cut: %d commands, %v", k-1, err)
				}
				break
			}
			if err := m.PowerCycle(); err != nil {
				t.Fatal(err)
			}
			d = New(dial(t, m))
			key := nodeKey(t, d, template.P256)
			h, err := d.Handles()
			if err != nil || len(h.Persistent) != 1 || h.Persistent[0] != DefaultSlots.Keys[0] || key.Slot() != 0 {
				t.Errorf("after a cut at command %d (after: %v): %#x, %v", k, after, h.Persistent, err)
			}
			if n := lockouts(t, d); n != 0 {
				t.Errorf("after a cut at command %d (after: %v) the lockout counter is %d", k, after, n)
			}
			m.Stop()
		}
	}
}

func lockouts(t *testing.T, d *Device) uint32 {
	t.Helper()
	p, err := d.Properties()
	if err != nil {
		t.Fatal(err)
	}
	return p.LockoutCounter
}

// TestLockoutCounterControl shows that the counter would rise for a key without noDA, and does not
// for ours.
func TestLockoutCounterControl(t *testing.T) {
	for _, noDA := range []bool{false, true} {
		m := testtpm.Start(t)
		d := New(dial(t, m))
		pub := template.NodeKey(template.P256)
		pub.ObjectAttributes.NoDA = noDA
		rsp, err := d.createPrimary(tpm2.TPMRHOwner, pub)
		if err != nil {
			t.Fatal(err)
		}
		out, err := rsp.OutPublic.Contents()
		if err != nil {
			t.Fatal(err)
		}
		public, err := template.Key(out)
		if err != nil {
			t.Fatal(err)
		}
		key := &Key{dev: d, pub: public, area: out, primary: rsp.ObjectHandle}
		digest := sha256.Sum256(nil)
		if _, err := key.Sign(nil, digest[:], crypto.SHA256); err != nil {
			t.Fatal(err)
		}
		if err := m.PowerCycle(); err != nil {
			t.Fatal(err)
		}
		if rose := lockouts(t, New(dial(t, m))) > 0; rose == noDA {
			t.Errorf("noDA %v: the lockout counter rose: %v", noDA, rose)
		}
	}
}

// occupy puts a key that is not ours at handle, and returns its public area.
func occupy(t *testing.T, d *Device, handle uint32) []byte {
	t.Helper()
	pub := template.NodeKey(template.P256)
	pub.ObjectAttributes.NoDA = false
	rsp, err := d.createPrimary(tpm2.TPMRHOwner, pub)
	if err != nil {
		t.Fatal(err)
	}
	defer d.flush(rsp.ObjectHandle)
	if err := d.makePersistent(rsp.ObjectHandle, handle); err != nil {
		t.Fatal(err)
	}
	return rsp.OutPublic.Bytes()
}

func TestSlotOfAnother(t *testing.T) {
	m := testtpm.Start(t)
	d := New(dial(t, m))
	theirs := occupy(t, d, DefaultSlots.Keys[0])
	key := nodeKey(t, d, template.P256)
	if key.Slot() != 1 || key.Handle() != DefaultSlots.Keys[1] {
		t.Errorf("the key is at slot %d", key.Slot())
	}
	if _, err := d.EvictKey(DefaultSlots); err != nil {
		t.Fatal(err)
	}
	h, err := d.Handles()
	if err != nil || len(h.Persistent) != 1 || h.Persistent[0] != DefaultSlots.Keys[0] {
		t.Errorf("after EvictKey: %#x, %v", h.Persistent, err)
	}
	if pub, err := d.readPublic(DefaultSlots.Keys[0]); err != nil || !bytes.Equal(tpm2.Marshal(*pub), theirs) {
		t.Errorf("the other's key changed: %v", err)
	}
	idle(t, d)
}

// TestKeyOfAnotherAlgorithm is ours, but not the one asked for.
func TestKeyOfAnotherAlgorithm(t *testing.T) {
	m := testtpm.Start(t)
	d := New(dial(t, m))
	old := nodeKey(t, d, template.P384)
	if key := nodeKey(t, d, template.P256); key.Slot() != 1 || key.Algorithm() != template.P256 {
		t.Errorf("slot %d, %v", key.Slot(), key.Algorithm())
	}
	if key := nodeKey(t, d, template.P384); !bytes.Equal(key.Name(), old.Name()) {
		t.Error("the P-384 key is not adopted")
	}
}

func TestPrimaryWhenNoSlotIsFree(t *testing.T) {
	for _, alg := range algorithms {
		t.Run(alg.String(), func(t *testing.T) {
			m := testtpm.Start(t)
			d := New(dial(t, m))
			occupy(t, d, DefaultSlots.Keys[0])
			occupy(t, d, DefaultSlots.Keys[1])
			key := nodeKey(t, d, alg)
			if key.Slot() != PrimarySlot || key.Handle() != 0 || !errors.Is(key.Why(), ErrNoSlot) {
				t.Fatalf("slot %d, handle %#x, why %v", key.Slot(), key.Handle(), key.Why())
			}
			signs(t, key)
			if err := d.WithEKs(false, func(eks []EK) error { return activate(d, &eks[0], key) }); err != nil {
				t.Error(err)
			}
			if _, err := d.PEM(key); !errors.Is(err, ErrPrimary) {
				t.Errorf("PEM: %v, ErrPrimary expected", err)
			}
			d.Close()
			idle(t, d)
			if err := m.PowerCycle(); err != nil {
				t.Fatal(err)
			}
			d = New(dial(t, m))
			later, err := d.KeyAt(0, key.Public())
			if err != nil {
				t.Fatal(err)
			}
			signs(t, later)
			d.Close()
			idle(t, d)
		})
	}
}

func TestPrimaryWhenEvictControlFails(t *testing.T) {
	m := testtpm.Start(t)
	faulty := testtpm.Inject(dial(t, m), testtpm.Fault{At: 1, Code: tpm2.TPMCCEvictControl, Answer: testtpm.RC(tpm2.TPMRCNVSpace)})
	d := New(faulty)
	key := nodeKey(t, d, template.P256)
	if key.Slot() != PrimarySlot || !errors.Is(key.Why(), tpm2.TPMRCNVSpace) {
		t.Errorf("slot %d, why %v", key.Slot(), key.Why())
	}
	d.Close()
	idle(t, d)
}

func TestOtherKey(t *testing.T) {
	m := testtpm.Start(t)
	d := New(dial(t, m))
	first := nodeKey(t, d, template.P256)
	second, created, err := d.OtherKey(DefaultSlots, template.P256, first)
	if err != nil || !created || second.Slot() != 1 || bytes.Equal(first.Name(), second.Name()) {
		t.Fatalf("OtherKey = slot %d, %v, %v", second.Slot(), created, err)
	}
	third, created, err := d.OtherKey(DefaultSlots, template.P256, second)
	if err != nil || created || !bytes.Equal(first.Name(), third.Name()) {
		t.Errorf("the other of the other: created %v, %v", created, err)
	}
	if err := d.EvictSlot(DefaultSlots, 0); err != nil {
		t.Fatal(err)
	}
	if key := nodeKey(t, d, template.P256); key.Slot() != 1 {
		t.Errorf("after the first was evicted NodeKey is slot %d", key.Slot())
	}
}

// TestCreateAndLoad is a TPM without TPM2_CreateLoaded.
func TestCreateAndLoad(t *testing.T) {
	m := testtpm.Start(t)
	d := New(testtpm.Inject(dial(t, m), testtpm.Fault{At: 1, Code: tpm2.TPMCCCreateLoaded, Answer: testtpm.RC(tpm2.TPMRCCommandCode)}))
	key := nodeKey(t, d, template.P256)
	if key.Slot() != 0 {
		t.Errorf("slot %d: %v", key.Slot(), key.Why())
	}
	signs(t, key)
	d.Close()
	idle(t, d)
}

// persistSRK puts an SRK of the given unique field at its handle.
func persistSRK(t *testing.T, d *Device, unique tpm2.TPMUPublicID) {
	t.Helper()
	pub := template.SRK()
	pub.Unique = unique
	rsp, err := d.createPrimary(tpm2.TPMRHOwner, pub)
	if err != nil {
		t.Fatal(err)
	}
	defer d.flush(rsp.ObjectHandle)
	if err := d.makePersistent(rsp.ObjectHandle, srkHandle); err != nil {
		t.Fatal(err)
	}
}

func TestPersistentSRK(t *testing.T) {
	m := testtpm.Start(t)
	d := New(dial(t, m))
	persistSRK(t, d, template.SRK().Unique)
	counter := testtpm.Count(dial(t, m))
	d = New(counter)
	key := nodeKey(t, d, template.P256)
	for _, cc := range counter.Commands() {
		if cc == tpm2.TPMCCCreatePrimary {
			t.Error("the SRK is derived though it is persistent")
		}
	}
	if key.Slot() != 0 {
		t.Errorf("slot %d: %v", key.Slot(), key.Why())
	}
}

// TestSRKWithoutChildren is an SRK of the right template that refuses them (AMD's fTPM after Windows).
func TestSRKWithoutChildren(t *testing.T) {
	m := testtpm.Start(t)
	persistSRK(t, New(dial(t, m)), template.SRK().Unique)
	d := New(testtpm.Inject(dial(t, m), testtpm.Fault{At: 1, Code: tpm2.TPMCCCreateLoaded, Answer: testtpm.RC(tpm2.TPMRCType)}))
	if key := nodeKey(t, d, template.P256); key.Slot() != 0 {
		t.Errorf("slot %d: %v", key.Slot(), key.Why())
	}
	d.Close()
	idle(t, d)
}

// garbage is nonsense after a header of success, but for TPM2_FlushContext, whose success has nothing
// after its header: a TPM that lies about it leaves its object loaded.
func garbage(command []byte) ([]byte, error) {
	if bytes.Equal(command[6:10], []byte{0, 0, 0x01, 0x65}) {
		return testtpm.Truncated(command)
	}
	return testtpm.Garbage(command)
}

// TestNothingIsLeftLoaded answers each command of a first boot with a fault.
func TestNothingIsLeftLoaded(t *testing.T) {
	faults := map[string]func([]byte) ([]byte, error){
		"failure": testtpm.RC(tpm2.TPMRCFailure), "memory": testtpm.RC(tpm2.TPMRCMemory),
		"bad auth": testtpm.RC(tpm2.TPMRCBadAuth), "lockout": testtpm.RC(tpm2.TPMRCLockout),
		"garbage": garbage, "truncated": testtpm.Truncated, "broken": testtpm.Broken,
	}
	for name, answer := range faults {
		t.Run(name, func(t *testing.T) {
			m := testtpm.Start(t, testtpm.P256Certificate())
			for k := 1; ; k++ {
				faulty := testtpm.Inject(dial(t, m), testtpm.Fault{At: k, Answer: answer})
				d := New(faulty)
				err := firstBoot(d, make([]byte, 690))
				d.Close()
				if faulty.Fired() == 0 {
					if k < 17 {
						t.Fatalf("only %d commands: %v", k-1, err)
					}
					break
				}
				clean := New(dial(t, m))
				if h, err := clean.Handles(); err != nil || len(h.Transient)+len(h.Sessions) != 0 {
					t.Errorf("fault at command %d: objects %#x, sessions %#x, %v", k, h.Transient, h.Sessions, err)
				}
				if n := lockouts(t, clean); n != 0 {
					t.Errorf("fault at command %d: lockout counter %d", k, n)
				}
				clean.EvictKey(DefaultSlots)
				clean.EraseRecords(DefaultSlots)
			}
		})
	}
}
