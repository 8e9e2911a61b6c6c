package tpm

import (
	"bytes"
	"encoding/asn1"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"muster/internal/template"
	"muster/internal/testtpm"
)

// putAt makes a primary of a template persistent at handle, as another program does.
func putAt(chip transport.TPM, handle uint32, pub tpm2.TPMTPublic) error {
	d := New(chip)
	rsp, err := d.createPrimary(tpm2.TPMRHOwner, pub)
	if err != nil {
		return err
	}
	defer d.flush(rsp.ObjectHandle)
	return d.makePersistent(rsp.ObjectHandle, handle)
}

func removeFrom(chip transport.TPM, handle uint32) error {
	_, err := tpm2.EvictControl{
		Auth: hierarchy(tpm2.TPMRHOwner), ObjectHandle: named(tpm2.TPMHandle(handle)), PersistentHandle: tpm2.TPMHandle(handle),
	}.Execute(chip)
	return err
}

// otherSRK is of the SRK's template and another key.
func otherSRK() tpm2.TPMTPublic {
	pub := template.SRK()
	pub.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)}, Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)},
	})
	return pub
}

// TestSRKMeanwhile has another program change what is at the SRK's handle, as systemd-tpm2-setup may at
// the same moment of a boot, before each command of a first boot and of the export that follows. The
// node gets its one key whatever comes, goes or is exchanged there; and what is there stays.
func TestSRKMeanwhile(t *testing.T) {
	appears := func(pub tpm2.TPMTPublic) func(transport.TPM) error {
		return func(chip transport.TPM) error { return putAt(chip, srkHandle, pub) }
	}
	goes := func(chip transport.TPM) error { return removeFrom(chip, srkHandle) }
	exchanged := func(pub tpm2.TPMTPublic) func(transport.TPM) error {
		return func(chip transport.TPM) error {
			if err := goes(chip); err != nil {
				return err
			}
			return putAt(chip, srkHandle, pub)
		}
	}
	foreign := template.NodeKey(template.P256)
	foreign.ObjectAttributes.NoDA = false
	for name, c := range map[string]struct {
		before bool // the SRK is there from the beginning
		act    func(transport.TPM) error
	}{
		"the SRK appears":                       {false, appears(template.SRK())},
		"another storage key appears":           {false, appears(otherSRK())},
		"a signing key appears":                 {false, appears(foreign)},
		"the SRK goes":                          {true, goes},
		"the SRK becomes another storage key":   {true, exchanged(otherSRK())},
		"the SRK becomes a signing key":         {true, exchanged(foreign)},
		"the SRK is made persistent once again": {true, exchanged(template.SRK())},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := testtpm.Start(t)
			for at := 1; ; at++ {
				chip := dial(t, m)
				if c.before {
					if err := putAt(chip, srkHandle, template.SRK()); err != nil {
						t.Fatal(err)
					}
				}
				i := testtpm.Meanwhile(chip, at, c.act)
				d := New(i)
				der := bootAndExport(t, d, at)
				d.Close()
				fired, err := i.Fired()
				if err != nil {
					t.Fatalf("command %d: the other program: %v", at, err)
				}
				check := New(chip)
				idle(t, check)
				loads(t, check, der, at)
				there, err := check.occupied(srkHandle)
				if want := c.before && !fired || fired && name != "the SRK goes"; err != nil || there != want {
					t.Errorf("command %d: something is at the SRK's handle: %v, %v", at, there, err)
				}
				if !fired {
					if at < 18 {
						t.Errorf("only %d commands", at-1)
					}
					return
				}
				reset(t, check)
			}
		})
	}
}

// bootAndExport is a first boot; it returns the exported key, DER.
func bootAndExport(t *testing.T, d *Device, at int) []byte {
	t.Helper()
	if err := firstBoot(d, make([]byte, 690)); err != nil {
		t.Fatalf("command %d: %v", at, err)
	}
	key, created, err := d.NodeKey(DefaultSlots, template.P256)
	if err != nil || created || key.Slot() != 0 {
		t.Fatalf("command %d: the key again: %+v, created %v, %v", at, key, created, err)
	}
	signs(t, key)
	return pemBytes(t, d, key)
}

// loads puts an exported key under the parent that it names.
func loads(t *testing.T, d *Device, der []byte, at int) {
	t.Helper()
	var file tssKey
	if _, err := asn1.Unmarshal(der, &file); err != nil {
		t.Fatal(err)
	}
	public, err := tpm2.Unmarshal[tpm2.TPM2BPublic](file.Public)
	if err != nil {
		t.Fatal(err)
	}
	private, err := tpm2.Unmarshal[tpm2.TPM2BPrivate](file.Private)
	if err != nil {
		t.Fatal(err)
	}
	load := func(parent tpm2.TPMHandle) error {
		rsp, err := tpm2.Load{ParentHandle: authorized(parent), InPrivate: *private, InPublic: *public}.Execute(d.tpm)
		if err == nil {
			d.flush(rsp.ObjectHandle)
		}
		return err
	}
	if tpm2.TPMHandle(file.Parent) == tpm2.TPMRHOwner {
		err = d.withSRK(load)
	} else {
		err = load(tpm2.TPMHandle(file.Parent))
	}
	if err != nil {
		t.Errorf("command %d: the exported key, under %#x: %v", at, file.Parent, err)
	}
}

// reset takes everything out of the TPM that a round has left there.
func reset(t *testing.T, d *Device) {
	t.Helper()
	if _, err := d.EvictKey(DefaultSlots); err != nil {
		t.Fatal(err)
	}
	if _, err := d.EraseRecords(DefaultSlots); err != nil {
		t.Fatal(err)
	}
	if there, err := d.occupied(srkHandle); err != nil {
		t.Fatal(err)
	} else if there {
		if err := removeFrom(d.tpm, srkHandle); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLeftOversStay: what another program has loaded in a bare TPM is its own, and is there afterwards.
func TestLeftOversStay(t *testing.T) {
	m := testtpm.Start(t)
	other := New(dial(t, m))
	theirs, err := other.createPrimary(tpm2.TPMRHOwner, template.SRK())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := tpm2.PolicySession(other.tpm, tpm2.TPMAlgSHA256, 16); err != nil {
		t.Fatal(err)
	}
	before, err := other.Handles()
	if err != nil || len(before.Transient) != 1 || len(before.Sessions) != 1 {
		t.Fatalf("%#x, %v", before, err)
	}
	d := New(dial(t, m))
	bootAndExport(t, d, 0)
	d.Close()
	after, err := other.Handles()
	if err != nil || len(after.Transient) != 1 || after.Transient[0] != before.Transient[0] ||
		len(after.Sessions) != 1 || after.Sessions[0] != before.Sessions[0] {
		t.Errorf("before %#x, after %#x, %v", before, after, err)
	}
	pub, err := other.readPublic(uint32(theirs.ObjectHandle))
	if err != nil || !bytes.Equal(tpm2.Marshal(*pub), theirs.OutPublic.Bytes()) {
		t.Errorf("their object: %v", err)
	}
}

// alternate lets another program do something before each command.
type alternate struct {
	transport.TPM
	act func()
}

func (a *alternate) Send(command []byte) ([]byte, error) {
	a.act()
	return a.TPM.Send(command)
}

// TestBesideAnotherProgram: two programs, each behind a resource manager of its own, as with tpm2-abrmd
// or /dev/tpmrm0. The other one keeps the three objects that there is room for, and uses one of them
// between all our commands; neither sees or loses anything.
func TestBesideAnotherProgram(t *testing.T) {
	m := testtpm.Start(t)
	chip := dial(t, m)
	theirs, err := testtpm.Manage(chip)
	if err != nil {
		t.Fatal(err)
	}
	other := New(theirs)
	var keys []*tpm2.CreatePrimaryResponse
	for range 3 {
		key, err := other.createPrimary(tpm2.TPMRHOwner, template.NodeKey(template.P256))
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key)
	}
	uses := 0
	use := func() {
		key := keys[uses%len(keys)]
		uses++
		_, err := tpm2.Sign{
			KeyHandle: authorized(key.ObjectHandle), Digest: tpm2.TPM2BDigest{Buffer: make([]byte, 32)},
			InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256})},
			Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
		}.Execute(theirs)
		if err != nil {
			t.Errorf("after %d uses: %v", uses-1, err)
		}
	}
	ours, err := testtpm.Manage(chip)
	if err != nil {
		t.Fatal(err)
	}
	d := New(&alternate{ours, use})
	bootAndExport(t, d, 0)
	d.Close()
	idle(t, New(ours)) // flushed by us, before the manager would
	if uses < 20 {
		t.Errorf("only %d commands", uses)
	}
	for range keys {
		use()
	}
	idle(t, New(chip))
}
