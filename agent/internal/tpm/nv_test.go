package tpm

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"muster/internal/template"
	"muster/internal/testtpm"
)

// record is one of n bytes of leaf, all of them n's low byte.
func record(n int) Record {
	return Record{Slot: 0, Algorithm: template.P256, Pin: [32]byte{1, 2, 3}, Leaf: bytes.Repeat([]byte{byte(n)}, n)}
}

// best returns the length of the best record's leaf, 0 for no record.
func best(t *testing.T, d *Device) int {
	t.Helper()
	records, err := d.ReadRecords(DefaultSlots)
	if err != nil {
		t.Fatal(err)
	}
	if len(records) == 0 {
		return 0
	}
	return len(records[0].Leaf)
}

func write(t *testing.T, d *Device, n int) {
	t.Helper()
	if err := d.WriteRecord(DefaultSlots, record(n)); err != nil {
		t.Fatal(err)
	}
}

func TestRecordsAlternate(t *testing.T) {
	m := testtpm.Start(t)
	nodeKey(t, New(dial(t, m)), template.P256)
	for i, n := range []int{690, 700, 968, 712, 1, 690} {
		d := New(dial(t, m))
		write(t, d, n)
		if got := best(t, New(dial(t, m))); got != n {
			t.Errorf("after write %d the best record has %d bytes, %d expected", i+1, got, n)
		}
		counter := testtpm.Count(dial(t, m))
		records, err := New(counter).ReadRecords(DefaultSlots)
		if err != nil || records[0].Sequence != uint32(i+1) || records[0].Index != i%2 {
			t.Errorf("write %d: %d records, sequence %d, index %d, %v", i+1, len(records), records[0].Sequence, records[0].Index, err)
		}
		if alone := len(counter.Commands()) == 1; alone != (i == 0) {
			t.Errorf("after write %d, %d commands read the records", i+1, len(counter.Commands()))
		}
	}
	// The same with one Device for all.
	d := New(dial(t, m))
	for n := 100; n < 105; n++ {
		write(t, d, n)
		if got := best(t, New(dial(t, m))); got != n {
			t.Errorf("the best record has %d bytes, %d expected", got, n)
		}
	}
}

// small is a TPM of 256 bytes a transfer, which makes every write one of many chunks.
func small(d *Device) *Device {
	d.transfer = 256
	return d
}

// TestPowerCutWhileWriting cuts at every command of the first four writes: the record before or the new
// one is there afterwards.
func TestPowerCutWhileWriting(t *testing.T) {
	for writes := range 4 {
		for _, after := range []bool{false, true} {
			for k := 1; ; k++ {
				m := testtpm.Start(t)
				d := small(New(dial(t, m)))
				nodeKey(t, d, template.P256)
				before := 0
				for i := range writes {
					before = 600 + i
					write(t, d, before)
				}
				killer := m.CutPower(dial(t, m), k, after)
				err := small(New(killer)).WriteRecord(DefaultSlots, record(900))
				if !killer.Fired() {
					if err != nil || k < 7 {
						t.Fatalf("a run without a cut: %d commands, %v", k-1, err)
					}
					break
				}
				if err := m.PowerCycle(); err != nil {
					t.Fatal(err)
				}
				d = New(dial(t, m))
				if got := best(t, d); got != before && got != 900 {
					t.Errorf("write %d cut at command %d (after: %v): the record has %d bytes, %d or 900 expected", writes+1, k, after, got, before)
				}
				write(t, d, 333)
				if got := best(t, New(dial(t, m))); got != 333 {
					t.Errorf("write %d cut at command %d (after: %v): the next write is not the best, but %d", writes+1, k, after, got)
				}
				m.Stop()
			}
		}
	}
}

func TestKeepRecord(t *testing.T) {
	m := testtpm.Start(t)
	d := New(dial(t, m))
	nodeKey(t, d, template.P256)
	write(t, d, 100)
	write(t, d, 200) // the newest, at index 1; say that its leaf does not verify
	d = New(dial(t, m))
	if got := best(t, d); got != 200 {
		t.Fatal(got)
	}
	d.KeepRecord(0)
	write(t, d, 300)
	records, err := New(dial(t, m)).ReadRecords(DefaultSlots)
	if err != nil || len(records) != 2 || len(records[0].Leaf) != 300 || len(records[1].Leaf) != 100 {
		t.Errorf("records: %v, %v", records, err)
	}
}

func TestForeignIndex(t *testing.T) {
	for _, test := range []struct {
		name string
		size int
	}{{"small", 64}, {"of our size", indexSize}, {"large", 1500}} {
		t.Run(test.name, func(t *testing.T) {
			m := testtpm.Start(t)
			raw := dial(t, m)
			theirs := bytes.Repeat([]byte{7}, test.size)
			if err := testtpm.DefineNV(raw, DefaultSlots.NV[0], theirs, test.size); err != nil {
				t.Fatal(err)
			}
			d := New(raw)
			nodeKey(t, d, template.P256)
			for _, n := range []int{690, 700} {
				write(t, d, n)
				if got := best(t, New(raw)); got != n {
					t.Errorf("the record has %d bytes, %d expected", got, n)
				}
			}
			if _, err := d.EraseRecords(DefaultSlots); err != nil {
				t.Fatal(err)
			}
			if b, err := d.readIndex(DefaultSlots.NV[0]); err != nil || !bytes.Equal(b, theirs) {
				t.Errorf("the other's index changed: %v", err)
			}
			if got := best(t, New(raw)); got != 0 {
				t.Errorf("after EraseRecords there is a record of %d bytes", got)
			}
			if err := testtpm.DefineNV(raw, DefaultSlots.NV[1], theirs, test.size); err != nil {
				t.Fatal(err)
			}
			err := New(raw).WriteRecord(DefaultSlots, record(690))
			if _, hint := Explain(err); !errors.Is(err, ErrNoNV) || hint == "" {
				t.Errorf("WriteRecord with both indices taken: %v (hint %q)", err, hint)
			}
			if n := lockouts(t, d); n != 0 {
				t.Errorf("lockout counter %d", n)
			}
		})
	}
}

func TestNoRoomInNV(t *testing.T) {
	m := testtpm.Start(t)
	full := testtpm.Fault{At: 1, Times: 9, Code: tpm2.TPMCCNVDefineSpace, Answer: testtpm.RC(tpm2.TPMRCNVSpace)}
	err := New(testtpm.Inject(dial(t, m), full)).WriteRecord(DefaultSlots, record(690))
	if !errors.Is(err, ErrNoNV) || !errors.Is(err, tpm2.TPMRCNVSpace) {
		t.Errorf("WriteRecord: %v", err)
	}
	// Room for one only: it is overwritten in place.
	write(t, New(dial(t, m)), 690)
	nodeKey(t, New(dial(t, m)), template.P256)
	d := New(testtpm.Inject(dial(t, m), full))
	write(t, d, 700)
	if got := best(t, New(dial(t, m))); got != 700 {
		t.Errorf("the record has %d bytes, 700 expected", got)
	}
	if err := d.WriteRecord(DefaultSlots, record(MaxLeaf+1)); !errors.Is(err, ErrNoNV) {
		t.Errorf("too long a leaf: %v, ErrNoNV expected", err)
	}
}

// TestTransferSizes are TPMs that take less than usual at a time.
func TestTransferSizes(t *testing.T) {
	for _, limit := range []int{768, 512, 300} {
		for _, silent := range []bool{false, true} {
			if silent && limit < leastTransfer {
				continue
			}
			m := testtpm.Start(t)
			next := &narrow{TPM: dial(t, m), limit: limit, silent: silent}
			d := New(next)
			nodeKey(t, d, template.P256)
			for _, n := range []int{690, 968, 500} {
				write(t, d, n)
				if got := best(t, New(next)); got != n {
					t.Errorf("limit %d: the record has %d bytes, %d expected", limit, got, n)
				}
			}
		}
	}
}

func TestOwnerPassword(t *testing.T) {
	m := testtpm.Start(t)
	raw := dial(t, m)
	d := New(raw)
	key := nodeKey(t, d, template.P256)
	write(t, d, 690)
	setPassword(t, d, tpm2.TPMRHOwner)

	d = New(raw)
	if got := best(t, d); got != 690 {
		t.Errorf("with an owner password the record has %d bytes", got)
	}
	if again := nodeKey(t, d, template.P256); !bytes.Equal(again.Name(), key.Name()) {
		t.Error("with an owner password another key is used")
	} else {
		signs(t, again)
	}
	err := d.WriteRecord(DefaultSlots, record(700))
	sentence, hint := Explain(err)
	if !errors.Is(err, ErrNoNV) || sentence != "the TPM's owner hierarchy has a password" || hint == "" {
		t.Errorf("WriteRecord: %v (%q, %q)", err, sentence, hint)
	}
	if got := best(t, New(raw)); got != 690 {
		t.Errorf("after the refused write the record has %d bytes", got)
	}
	if n := lockouts(t, d); n != 0 {
		t.Errorf("lockout counter %d", n)
	}

	blank := testtpm.Start(t)
	d = New(dial(t, blank))
	setPassword(t, d, tpm2.TPMRHOwner)
	primary := nodeKey(t, d, template.P256)
	if sentence, _ := Explain(primary.Why()); primary.Slot() != PrimarySlot || sentence != "the TPM's owner hierarchy has a password" {
		t.Errorf("a new key with an owner password: slot %d, %v", primary.Slot(), primary.Why())
	}
	signs(t, primary)
	if err := d.WithEKs(false, func(eks []EK) error { return activate(d, &eks[0], primary) }); err != nil {
		t.Error(err)
	}
	d.Close()
	idle(t, d)
}

func setPassword(t *testing.T, d *Device, of tpm2.TPMHandle) {
	t.Helper()
	_, err := tpm2.HierarchyChangeAuth{AuthHandle: hierarchy(of), NewAuth: tpm2.TPM2BAuth{Buffer: []byte("secret")}}.Execute(d.tpm)
	if err != nil {
		t.Fatal(err)
	}
}

func TestEndorsementPassword(t *testing.T) {
	m := testtpm.Start(t)
	d := New(dial(t, m))
	setPassword(t, d, tpm2.TPMRHEndorsement)
	_, err := d.EKs(false)
	if sentence, hint := Explain(err); sentence != "the TPM's endorsement hierarchy has a password" || hint == "" {
		t.Errorf("EKs: %v (%q, %q)", err, sentence, hint)
	}
	idle(t, d)
}

// TestForeignIndexLikeOurs is an index of the owner's, at our address, that even starts as a record
// does: its attributes or its size still say that it is not ours.
func TestForeignIndexLikeOurs(t *testing.T) {
	look, err := record(690).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*tpm2.TPMSNVPublic){
		"attributes": func(p *tpm2.TPMSNVPublic) { p.Attributes.AuthWrite = true },
		"size":       func(p *tpm2.TPMSNVPublic) { p.DataSize = indexSize - 1 },
	} {
		m := testtpm.Start(t)
		d := New(dial(t, m))
		public := tpm2.TPMSNVPublic{
			NVIndex: tpm2.TPMHandle(DefaultSlots.NV[0]), NameAlg: tpm2.TPMAlgSHA256, Attributes: indexAttributes, DataSize: indexSize,
		}
		change(&public)
		_, err := tpm2.NVDefineSpace{AuthHandle: hierarchy(tpm2.TPMRHOwner), PublicInfo: tpm2.New2B(public)}.Execute(d.tpm)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.nvWrite(DefaultSlots.NV[0], look); err != nil {
			t.Fatal(err)
		}
		write(t, d, 700)
		write(t, d, 710)
		if _, err := d.EraseRecords(DefaultSlots); err != nil {
			t.Fatal(err)
		}
		if b, err := d.readIndex(DefaultSlots.NV[0]); err != nil || !bytes.Equal(b[:len(look)], look) {
			t.Errorf("other %s: the index changed: %v", name, err)
		}
	}
}
