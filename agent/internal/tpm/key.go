package tpm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/google/go-tpm/tpm2"

	"muster/internal/template"
)

// Slots are the places in the TPM that are ours: two persistent handles for node keys and two NV
// indices for records.
type Slots struct {
	Keys [2]uint32
	NV   [2]uint32
}

// DefaultSlots lie in the owner's ranges (TCG Registry of Reserved TPM 2.0 Handles).
var DefaultSlots = Slots{
	Keys: [2]uint32{0x81004E00, 0x81004E01},
	NV:   [2]uint32{0x01804E00, 0x01804E01},
}

// PrimarySlot is [Key.Slot] of the deterministic primary key, which occupies none.
const PrimarySlot = -1

var (
	// ErrBadSignature is a signature by another key than the one asked for.
	ErrBadSignature = errors.New("the signature is not by the node key")
	// ErrNoSlot is no room for another node key.
	ErrNoSlot = errors.New("no slot for another node key")
)

// Key is a node key. It implements crypto.Signer, and may sign from several goroutines.
type Key struct {
	dev    *Device
	pub    crypto.PublicKey
	area   *tpm2.TPMTPublic
	handle uint32
	slot   int
	alg    template.Algorithm
	why    error

	mu      sync.Mutex
	primary tpm2.TPMHandle // the loaded primary of slot -1, 0 until it is derived
}

// Public returns an *ecdsa.PublicKey or *rsa.PublicKey.
func (k *Key) Public() crypto.PublicKey { return k.pub }

// Area returns the key's TPMT_PUBLIC (part 2, 12.2.4).
func (k *Key) Area() []byte { return tpm2.Marshal(*k.area) }

// Name returns the key's Name (part 1, 16).
func (k *Key) Name() []byte {
	name, err := tpm2.ObjectName(k.area)
	if err != nil {
		panic("tpm: node key without a name: " + err.Error()) // its nameAlg is SHA-256 by template
	}
	return name.Buffer
}

// Handle returns the key's persistent handle, or 0 for the deterministic primary.
func (k *Key) Handle() uint32 { return k.handle }

// Slot returns 0 or 1, the key's place in [Slots], or [PrimarySlot].
func (k *Key) Slot() int { return k.slot }

// Algorithm returns the key's algorithm.
func (k *Key) Algorithm() template.Algorithm { return k.alg }

// Why returns what kept a primary key from a slot of its own, else nil.
func (k *Key) Why() error { return k.why }

// TLSSchemes returns what the key can sign in TLS 1.3, for tls.Certificate.
func (k *Key) TLSSchemes() []tls.SignatureScheme {
	switch k.alg {
	case template.P256:
		return []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256}
	case template.P384:
		return []tls.SignatureScheme{tls.ECDSAWithP384AndSHA384}
	}
	return []tls.SignatureScheme{tls.PSSWithSHA256, tls.PSSWithSHA384}
}

// NodeKey returns the node's key: one found in our slots with exactly the public area of alg's
// template, else a new one. A new key is a child of the storage root key and persistent before it is
// returned, so that a power cut never makes a second one. A slot taken by anything else is left
// alone. With no slot to be had the key is a primary of a fixed unique field, the same at each boot
// until the TPM is cleared; Why says the reason then.
func (d *Device) NodeKey(slots Slots, alg template.Algorithm) (key *Key, created bool, err error) {
	return d.nodeKey(slots, alg, []int{0, 1}, nil)
}

// OtherKey returns a node key besides than: in the other slot, found there or made there as by
// [Device.NodeKey]. Beside a primary key it may be in either slot. With no room it returns
// [ErrNoSlot].
func (d *Device) OtherKey(slots Slots, alg template.Algorithm, than *Key) (key *Key, created bool, err error) {
	use := []int{0, 1}
	if than.slot != PrimarySlot {
		use = []int{1 - than.slot}
	}
	return d.nodeKey(slots, alg, use, than)
}

func (d *Device) nodeKey(slots Slots, alg template.Algorithm, use []int, than *Key) (*Key, bool, error) {
	d.slots = slots
	var free []int
	for _, slot := range use {
		key, there, err := d.adopt(slots.Keys[slot], slot, alg)
		if err != nil || key != nil {
			return key, false, err
		}
		if !there {
			free = append(free, slot)
		}
	}
	key, why := d.create(slots, alg, free)
	if key != nil {
		return key, true, nil
	}
	if !errors.Is(why, ErrNoSlot) && !refused(why) {
		return nil, false, why
	}
	if than != nil && than.slot == PrimarySlot {
		return nil, false, fmt.Errorf("%w: %w", ErrNoSlot, why)
	}
	key, err := d.PrimaryKey(alg, nil)
	if err != nil {
		return nil, false, err
	}
	key.why = why
	return key, true, nil
}

// adopt returns the key at handle when it is ours, and whether anything is there.
func (d *Device) adopt(handle uint32, slot int, alg template.Algorithm) (key *Key, there bool, err error) {
	there, err = d.occupied(handle)
	if err != nil || !there {
		return nil, there, err
	}
	pub, err := d.readPublic(handle)
	if refused(err) {
		return nil, true, nil
	}
	if err != nil {
		return nil, true, err
	}
	if found, err := template.CheckNodeKey(pub); err != nil || found != alg {
		return nil, true, nil
	}
	key, err = d.newKey(pub, handle, slot)
	if err != nil {
		return nil, true, nil // of our template but not a usable key: not ours to touch
	}
	return key, true, nil
}

// Keys returns the node keys in our slots, of whatever algorithm, and makes none.
func (d *Device) Keys(slots Slots) ([]*Key, error) {
	d.slots = slots
	var keys []*Key
	for slot, handle := range slots.Keys {
		for _, alg := range []template.Algorithm{template.P256, template.P384, template.RSA2048} {
			key, _, err := d.adopt(handle, slot, alg)
			if err != nil {
				return nil, err
			}
			if key != nil {
				keys = append(keys, key)
			}
		}
	}
	return keys, nil
}

func (d *Device) newKey(pub *tpm2.TPMTPublic, handle uint32, slot int) (*Key, error) {
	alg, err := template.CheckNodeKey(pub)
	if err != nil {
		return nil, err
	}
	public, err := template.Key(pub)
	if err != nil {
		return nil, err
	}
	return &Key{dev: d, pub: public, area: pub, handle: handle, slot: slot, alg: alg}, nil
}

// create makes a key and puts it in the first of the free slots that takes it.
//
//  1. create and load it under the SRK, which is flushed before anything else is loaded beside it;
//  2. make it persistent;
//  3. flush the transient copy.
func (d *Device) create(slots Slots, alg template.Algorithm, free []int) (*Key, error) {
	if len(free) == 0 {
		return nil, fmt.Errorf("%w: the slots hold other keys", ErrNoSlot)
	}
	var handle tpm2.TPMHandle
	var pub *tpm2.TPMTPublic
	err := d.parents(func(parent tpm2.TPMHandle) (err error) {
		handle, pub, err = d.createLoaded(parent, alg)
		return err
	})
	if handle != 0 {
		defer d.flush(handle)
	}
	if err != nil {
		return nil, err
	}
	key, err := d.newKey(pub, 0, PrimarySlot)
	if err != nil {
		return nil, fmt.Errorf("the TPM made another key than it was asked for: %v", err)
	}
	for _, slot := range free {
		if err = d.makePersistent(handle, slots.Keys[slot]); err == nil {
			key.handle, key.slot = slots.Keys[slot], slot
			return key, nil
		}
		if !errors.Is(err, tpm2.TPMRCNVDefined) { // somebody was faster: the next slot
			break
		}
	}
	return nil, err
}

// createLoaded makes a key of alg's template under parent (part 3, 12.9); the caller flushes it.
func (d *Device) createLoaded(parent tpm2.TPMHandle, alg template.Algorithm) (tpm2.TPMHandle, *tpm2.TPMTPublic, error) {
	pub := template.NodeKey(alg)
	rsp, err := tpm2.CreateLoaded{ParentHandle: authorized(parent), InPublic: tpm2.New2BTemplate(&pub)}.Execute(d.tpm)
	if errors.Is(err, tpm2.TPMRCCommandCode) { // older Intel PTT
		return d.createAndLoad(parent, pub)
	}
	if err != nil {
		return 0, nil, failed("tpm2.CreateLoaded", 0, err)
	}
	d.track(rsp.ObjectHandle)
	out, err := rsp.OutPublic.Contents()
	return rsp.ObjectHandle, out, failed("tpm2.CreateLoaded", 0, err)
}

func (d *Device) createAndLoad(parent tpm2.TPMHandle, pub tpm2.TPMTPublic) (tpm2.TPMHandle, *tpm2.TPMTPublic, error) {
	made, err := tpm2.Create{ParentHandle: authorized(parent), InPublic: tpm2.New2B(pub)}.Execute(d.tpm)
	if err != nil {
		return 0, nil, failed("tpm2.Create", 0, err)
	}
	out, err := made.OutPublic.Contents()
	if err != nil {
		return 0, nil, failed("tpm2.Create", 0, err)
	}
	rsp, err := tpm2.Load{
		ParentHandle: authorized(parent), InPrivate: made.OutPrivate, InPublic: made.OutPublic,
	}.Execute(d.tpm)
	if err != nil {
		return 0, nil, failed("tpm2.Load", 0, err)
	}
	d.track(rsp.ObjectHandle)
	return rsp.ObjectHandle, out, nil
}

// makePersistent gives a loaded key a persistent handle (part 3, 28.5).
func (d *Device) makePersistent(object tpm2.TPMHandle, handle uint32) error {
	d.listed = false
	_, err := tpm2.EvictControl{
		Auth: hierarchy(tpm2.TPMRHOwner), ObjectHandle: named(object), PersistentHandle: tpm2.TPMHandle(handle),
	}.Execute(d.tpm)
	if err != nil {
		return failed("tpm2.EvictControl", tpm2.TPMRHOwner, err)
	}
	if d.persistent != nil {
		d.persistent, d.listed = append(slices.Clone(d.persistent), handle), true
	}
	return nil
}

// EvictKey removes the keys in our slots that are exactly of our template. Other keys stay. It says
// whether there was any.
func (d *Device) EvictKey(slots Slots) (bool, error) {
	a, errA := d.evictSlot(slots, 0)
	b, errB := d.evictSlot(slots, 1)
	return a || b, errors.Join(errA, errB)
}

// EvictSlot is [Device.EvictKey] for one slot, as after a renewal.
func (d *Device) EvictSlot(slots Slots, slot int) error {
	if slot == PrimarySlot {
		return fmt.Errorf("%w: a primary key has none to be evicted from", ErrNoSlot)
	}
	_, err := d.evictSlot(slots, slot)
	return err
}

func (d *Device) evictSlot(slots Slots, slot int) (bool, error) {
	handle := slots.Keys[slot]
	there, err := d.occupied(handle)
	if err != nil || !there {
		return false, err
	}
	pub, err := d.readPublic(handle)
	if err != nil {
		return false, err
	}
	if _, err := template.CheckNodeKey(pub); err != nil {
		return false, nil
	}
	d.listed = false
	_, err = tpm2.EvictControl{
		Auth: hierarchy(tpm2.TPMRHOwner), ObjectHandle: named(tpm2.TPMHandle(handle)), PersistentHandle: tpm2.TPMHandle(handle),
	}.Execute(d.tpm)
	return err == nil, failed("tpm2.EvictControl", tpm2.TPMRHOwner, err)
}

// PrimaryKey derives the deterministic primary of alg: in the owner hierarchy, or, where that one
// refuses (a password, disabled), in the endorsement hierarchy. With want, a public key, only that key
// will do, and another is [ErrBadSignature]. It stays loaded until Close.
func (d *Device) PrimaryKey(alg template.Algorithm, want crypto.PublicKey) (*Key, error) {
	pub := template.NodeKey(alg)
	pub.Unique = primaryUnique(alg)
	var first error
	for _, parent := range []tpm2.TPMHandle{tpm2.TPMRHOwner, tpm2.TPMRHEndorsement} {
		key, err := d.primaryIn(parent, pub)
		if err == nil && want != nil && !equal(key.pub, want) {
			d.flush(key.primary)
			err = ErrBadSignature
		}
		if err == nil {
			return key, nil
		}
		if first == nil {
			first = err
		}
		if !refused(err) && !errors.Is(err, ErrBadSignature) {
			break
		}
	}
	return nil, first
}

func (d *Device) primaryIn(parent tpm2.TPMHandle, pub tpm2.TPMTPublic) (*Key, error) {
	rsp, err := d.createPrimary(parent, pub)
	if err != nil {
		return nil, err
	}
	var key *Key
	out, err := rsp.OutPublic.Contents()
	if err == nil {
		key, err = d.newKey(out, 0, PrimarySlot)
	}
	if err != nil {
		d.flush(rsp.ObjectHandle)
		return nil, failed("tpm2.CreatePrimary", parent, err)
	}
	key.primary = rsp.ObjectHandle
	return key, nil
}

// primaryUnique is what tells our primary from every other of the same template. Changing it
// changes the key of every node that uses it.
func primaryUnique(alg template.Algorithm) tpm2.TPMUPublicID {
	seed := sha256.Sum256([]byte("muster: deterministic node key"))
	size := map[template.Algorithm]int{template.P256: 32, template.P384: 48, template.RSA2048: 256}[alg]
	field := make([]byte, size)
	copy(field, seed[:])
	if alg == template.RSA2048 {
		return tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: field})
	}
	return tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: field},
		Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, size)},
	})
}

// KeyAt returns the node key at a persistent handle, whose public key the caller has from its
// certificate, without asking the TPM: Sign finds out when another key is there. Handle 0 is the
// deterministic primary, derived at its first use. Slot is by the [Slots] last given to this Device.
func (d *Device) KeyAt(handle uint32, pub crypto.PublicKey) (*Key, error) {
	area, err := areaOf(pub)
	if err != nil {
		return nil, err
	}
	return d.newKey(area, handle, slices.Index(d.slots.Keys[:], handle))
}

// areaOf rebuilds a node key's public area from its public key.
func areaOf(pub crypto.PublicKey) (*tpm2.TPMTPublic, error) {
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		alg := template.P256
		switch pub.Curve {
		case elliptic.P256():
		case elliptic.P384():
			alg = template.P384
		default:
			return nil, errors.New("a node key is not on this curve")
		}
		raw, err := pub.Bytes()
		if err != nil {
			return nil, err
		}
		area, n := template.NodeKey(alg), len(raw)/2
		area.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: raw[1 : 1+n]}, Y: tpm2.TPM2BECCParameter{Buffer: raw[1+n:]},
		})
		return &area, nil
	case *rsa.PublicKey:
		area := template.NodeKey(template.RSA2048)
		area.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: pub.N.Bytes()})
		return &area, nil
	}
	return nil, fmt.Errorf("a node key is not a %T", pub)
}

func equal(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// loaded returns the handle to use the key by, deriving the primary when need be.
func (k *Key) loaded() (tpm2.TPMHandle, error) {
	if k.handle != 0 {
		return tpm2.TPMHandle(k.handle), nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.primary == 0 {
		derived, err := k.dev.PrimaryKey(k.alg, k.pub)
		if err != nil {
			return 0, err
		}
		k.primary = derived.primary
	}
	return k.primary, nil
}
