package tpm

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
)

const (
	// usualTransfer is what every chip seen takes in one NV command, and a usual record fits in.
	usualTransfer = 768
	// leastTransfer is for a TPM that refuses more and does not say how much it takes.
	leastTransfer = 512
)

// ErrNoNV is no place for a record: no room, an owner password, an index that is not ours. The
// caller goes on without (storage=head). It wraps the TPM's reason.
var ErrNoNV = errors.New("no record in the TPM's NV")

// errUnreadable is an index that cannot be read without risking a failed authorization.
var errUnreadable = errors.New("index may not be read")

// nvState is what is known of one of our indices.
type nvState int

const (
	nvUnknown   nvState = iota
	nvAbsent            // not defined
	nvUnwritten         // defined, never written
	nvForeign           // another's
	nvWritten           // holds something that may be a record, or a torn one
)

// indexAttributes are what an index of ours has besides the TPM's own flag for written ones. Not
// authwrite: with the index's empty password everyone could write. Not orderly: that is memory.
var indexAttributes = tpm2.TPMANV{OwnerWrite: true, OwnerRead: true, AuthRead: true, NoDA: true, NT: tpm2.TPMNTOrdinary}

// Stored is a record and the index of [Slots.NV] that it was found in.
type Stored struct {
	Record
	Index int
}

// ReadRecords returns the records in our NV indices, the newest first. An index that is absent, never
// written, torn or another's holds none. A record that stands alone ([FlagAlone]) is one command; when
// index A does not exist, B is looked at only if a key is in one of our slots.
//
// The records are authentic in nothing: the caller verifies the leaf, takes the first that holds, and
// says so with [Device.KeepRecord].
func (d *Device) ReadRecords(slots Slots) ([]Stored, error) {
	d.slots, d.records, d.keep = slots, nil, -1
	for i, index := range slots.NV {
		if i == 1 {
			needed, err := d.secondNeeded(slots)
			if err != nil {
				return nil, err
			}
			if !needed {
				break
			}
		}
		b, err := d.readRecord(index)
		if err != nil {
			return nil, err
		}
		if r, err := ParseRecord(b); err == nil {
			d.records = append(d.records, Stored{Record: r, Index: i})
		}
	}
	slices.SortStableFunc(d.records, func(a, b Stored) int {
		switch {
		case a.newer(b.Record):
			return -1
		case b.newer(a.Record):
			return 1
		}
		return 0
	})
	if len(d.records) > 0 {
		d.keep = d.records[0].Index
	}
	return slices.Clone(d.records), nil
}

// secondNeeded says whether B can hold a record that matters, after A was read.
func (d *Device) secondNeeded(slots Slots) (bool, error) {
	if len(d.records) > 0 {
		return d.records[0].Flags&FlagAlone == 0, nil
	}
	if d.nv[slots.NV[0]] != nvAbsent {
		return true, nil
	}
	for _, handle := range slots.Keys {
		if there, err := d.occupied(handle); err != nil || there {
			return there, err
		}
	}
	return false, nil
}

// KeepRecord says that the record at index (of [Slots.NV]) is the one in use: WriteRecord leaves it
// whole until another is written.
func (d *Device) KeepRecord(index int) { d.keep = index }

// readRecord reads an index of ours as far as a record goes, and notes its state. The error is of the
// transport; what the TPM refuses is no record.
func (d *Device) readRecord(index uint32) ([]byte, error) {
	b, err := d.readOwn(index, 0, min(d.chunk(), usualTransfer))
	for err == nil {
		size, bad := recordSize(b)
		if bad != nil || size <= len(b) {
			break
		}
		var more []byte
		more, err = d.readOwn(index, len(b), min(size-len(b), d.chunk()))
		b = append(b, more...)
	}
	switch {
	case err == nil:
		d.nv[index] = nvWritten
	case isAny(err, tpm2.TPMRCHandle, tpm2.TPMRCHierarchy):
		d.nv[index] = nvAbsent
	case errors.Is(err, tpm2.TPMRCNVUninitialized):
		d.nv[index] = nvUnwritten
	case isAny(err, tpm2.TPMRCNVRange, tpm2.TPMRCNVAuthorization, tpm2.TPMRCNVLocked, tpm2.TPMRCAuthUnavailable,
		tpm2.TPMRCAuthType, tpm2.TPMRCAttributes, tpm2.TPMRCType), errors.Is(err, errUnreadable):
		d.nv[index] = nvForeign
	default:
		return nil, err
	}
	return b, nil
}

// readOwn reads from an index of ours: by the owner's password, which is empty as a rule and whose
// failure nothing counts. Only with an owner password set does it use the index's own, once it knows
// that this cannot count as a failed authorization either.
func (d *Device) readOwn(index uint32, offset, size int) ([]byte, error) {
	b, err := d.nvRead(hierarchy(tpm2.TPMRHOwner), index, offset, size)
	if !isAny(err, tpm2.TPMRCBadAuth, tpm2.TPMRCAuthFail) {
		return b, err
	}
	pub, err := d.nvPublic(index)
	if err != nil {
		return nil, err
	}
	if !pub.Attributes.AuthRead || !pub.Attributes.NoDA {
		return nil, errUnreadable
	}
	return d.nvRead(authorized(tpm2.TPMHandle(index)), index, offset, size)
}

// readIndex reads the whole of an index that another made, an EK certificate's say.
func (d *Device) readIndex(index uint32) ([]byte, error) {
	pub, err := d.nvPublic(index)
	if err != nil {
		return nil, err
	}
	var auth tpm2.AuthHandle
	switch {
	case pub.Attributes.AuthRead && pub.Attributes.NoDA:
		auth = authorized(tpm2.TPMHandle(index))
	case pub.Attributes.OwnerRead:
		auth = hierarchy(tpm2.TPMRHOwner)
	default:
		return nil, errUnreadable
	}
	b := make([]byte, 0, pub.DataSize)
	for len(b) < int(pub.DataSize) {
		more, err := d.nvRead(auth, index, len(b), min(int(pub.DataSize)-len(b), d.chunk()))
		if err != nil {
			return nil, err
		}
		b = append(b, more...)
	}
	return b, nil
}

// nvPublic reads an index's public area (part 3, 31.6).
func (d *Device) nvPublic(index uint32) (*tpm2.TPMSNVPublic, error) {
	rsp, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(index)}.Execute(d.tpm)
	if err != nil {
		return nil, failed("tpm2.NVReadPublic", 0, err)
	}
	pub, err := rsp.NVPublic.Contents()
	return pub, failed("tpm2.NVReadPublic", 0, err)
}

// nvRead reads up to size bytes (part 3, 31.13): fewer, but some, when the TPM takes less at a time.
func (d *Device) nvRead(auth tpm2.AuthHandle, index uint32, offset, size int) ([]byte, error) {
	for {
		rsp, err := tpm2.NVRead{
			AuthHandle: auth, NVIndex: named(tpm2.TPMHandle(index)), Size: uint16(size), Offset: uint16(offset),
		}.Execute(d.tpm)
		switch {
		case err == nil && len(rsp.Data.Buffer) == 0:
			return nil, failed("tpm2.NVRead", 0, ErrProtocol)
		case err == nil:
			return rsp.Data.Buffer, nil
		case !d.tooMuch(err, &size):
			return nil, failed("tpm2.NVRead", auth.Handle, err)
		}
	}
}

// nvWrite writes data at offset (part 3, 31.7), in as many transfers as the TPM needs.
func (d *Device) nvWrite(index uint32, data []byte) error {
	if len(data) > usualTransfer && d.transfer == 0 {
		d.askTransfer()
	}
	for offset := 0; offset < len(data); {
		size := min(len(data)-offset, d.chunk())
		_, err := tpm2.NVWrite{
			AuthHandle: hierarchy(tpm2.TPMRHOwner), NVIndex: named(tpm2.TPMHandle(index)),
			Data: tpm2.TPM2BMaxNVBuffer{Buffer: data[offset : offset+size]}, Offset: uint16(offset),
		}.Execute(d.tpm)
		if err != nil && !d.tooMuch(err, &size) {
			return failed("tpm2.NVWrite", tpm2.TPMRHOwner, err)
		}
		if err == nil {
			offset += size
		}
	}
	return nil
}

// chunk is how many bytes one NV command may carry, as far as is known.
func (d *Device) chunk() int {
	if d.transfer == 0 {
		return usualTransfer
	}
	return d.transfer
}

// tooMuch says whether err means that size bytes are more than the TPM takes at a time, and lowers
// size then.
func (d *Device) tooMuch(err error, size *int) bool {
	if !isAny(err, tpm2.TPMRCSize, tpm2.TPMRCValue) {
		return false
	}
	if d.transfer == 0 {
		d.askTransfer()
	}
	if d.transfer >= *size {
		d.transfer = leastTransfer
	}
	if d.transfer >= *size {
		return false
	}
	*size = d.transfer
	return true
}

// askTransfer asks for TPM_PT_NV_BUFFER_MAX (part 2, 6.13), once.
func (d *Device) askTransfer() {
	d.transfer = leastTransfer
	values, err := d.properties(uint32(tpm2.TPMPTNVBufferMax), 1)
	if n := int(values[uint32(tpm2.TPMPTNVBufferMax)]); err == nil && n > 0 {
		d.transfer = min(n, indexSize)
	}
}

// WriteRecord stores r in NV; it sets r's Sequence and FlagAlone itself. The error is [ErrNoNV] when
// there is no place, an index of another's left as it is; or of the transport.
//
// A power cut at any instant leaves a whole record. The record in use stays where it is, and r goes
// into the other index, made now if need be, and is read back:
//
//	first record   A, with FlagAlone            torn: no record, as before
//	second         B, without                   torn: A still stands alone, B is not even read
//	               then A again, without it     torn: B is whole, and read because A is not
//	third, …       the older of A and B         torn: the other is whole
//
// Between the second record's two steps a boot sees A, the former record, as if the cut had come
// before both. Only where one index is all there is (the other is another's, or has no room) is the
// record overwritten in place: torn, it is fetched from the head again.
func (d *Device) WriteRecord(slots Slots, r Record) error {
	r.Flags &^= FlagAlone
	if _, err := r.Marshal(); err != nil {
		return fmt.Errorf("%w: %v", ErrNoNV, err)
	}
	if slots != d.slots || d.nv[slots.NV[0]] == nvUnknown {
		if _, err := d.ReadRecords(slots); err != nil {
			return err
		}
	}
	targets := []int{0, 1}
	if d.keep == 0 {
		targets = []int{1, 0}
	}
	if len(d.records) > 0 {
		r.Sequence = d.records[0].Sequence + 1
	} else {
		r.Sequence = 1
	}
	var first error
	for _, i := range targets {
		err := d.writeTo(slots, i, r)
		if err == nil {
			return d.unflagA(slots, i)
		}
		if !refused(err) && !errors.Is(err, ErrNoNV) {
			return err
		}
		if first == nil {
			first = err
		}
	}
	if errors.Is(first, ErrNoNV) {
		return first
	}
	return fmt.Errorf("%w: %w", ErrNoNV, first)
}

// writeTo puts r into index i and reads it back.
func (d *Device) writeTo(slots Slots, i int, r Record) error {
	if i == 0 && d.nv[slots.NV[1]] != nvWritten {
		r.Flags |= FlagAlone
	}
	b, err := r.Marshal()
	if err != nil {
		return err
	}
	index := slots.NV[i]
	if err := d.prepare(index); err != nil {
		return err
	}
	d.forget(i)
	d.nv[index] = nvWritten
	if err := d.nvWrite(index, b); err != nil {
		return err
	}
	back, err := d.readRecord(index)
	if err != nil {
		return err
	}
	if len(back) < len(b) || !bytes.Equal(back[:len(b)], b) {
		return fmt.Errorf("%w: the TPM gave back something else than was written", ErrNoNV)
	}
	d.records = slices.Insert(d.records, 0, Stored{Record: r, Index: i})
	d.keep = i
	return nil
}

func (d *Device) forget(i int) {
	d.records = slices.DeleteFunc(d.records, func(s Stored) bool { return s.Index == i })
}

// unflagA ends A's standing alone once B is written.
func (d *Device) unflagA(slots Slots, written int) error {
	a := slices.IndexFunc(d.records, func(s Stored) bool { return s.Index == 0 })
	if written == 0 || a < 0 || d.records[a].Flags&FlagAlone == 0 {
		return nil
	}
	r := d.records[a].Record
	r.Flags &^= FlagAlone
	newest := d.records[0]
	err := d.writeTo(slots, 0, r)
	if refused(err) {
		err = fmt.Errorf("%w: %w", ErrNoNV, err) // a boot still sees A alone
	}
	if err != nil {
		return err
	}
	d.records = []Stored{newest, {Record: r, Index: 0}}
	d.keep = newest.Index
	return nil
}

// prepare sees that index exists and is ours.
func (d *Device) prepare(index uint32) error {
	if d.nv[index] == nvForeign {
		return foreign(index)
	}
	if d.nv[index] == nvAbsent {
		err := d.define(index)
		if !errors.Is(err, tpm2.TPMRCNVDefined) {
			return err
		}
	}
	pub, err := d.nvPublic(index)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return d.define(index)
	}
	if err != nil {
		return err
	}
	if !ours(pub) {
		d.nv[index] = nvForeign
		return foreign(index)
	}
	return nil
}

func foreign(index uint32) error {
	return fmt.Errorf("%w: index %#08x is not muster's: %w", ErrNoNV, index, tpm2.TPMRCNVDefined)
}

func ours(pub *tpm2.TPMSNVPublic) bool {
	attributes := pub.Attributes
	attributes.Written = false
	return attributes == indexAttributes && pub.DataSize == indexSize
}

// define makes an index (part 3, 31.3).
func (d *Device) define(index uint32) error {
	_, err := tpm2.NVDefineSpace{
		AuthHandle: hierarchy(tpm2.TPMRHOwner),
		PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
			NVIndex: tpm2.TPMHandle(index), NameAlg: tpm2.TPMAlgSHA256, Attributes: indexAttributes, DataSize: indexSize,
		}),
	}.Execute(d.tpm)
	if err != nil {
		return failed("tpm2.NVDefineSpace", tpm2.TPMRHOwner, err)
	}
	d.nv[index] = nvUnwritten
	return nil
}

// EraseRecords removes our indices: those of exactly our attributes and size that start with a
// record's magic, or were never written. What is another's stays. It says whether there was any.
func (d *Device) EraseRecords(slots Slots) (bool, error) {
	d.records, d.keep = nil, -1
	b, errB := d.erase(slots.NV[1])
	a, errA := d.erase(slots.NV[0])
	return a || b, errors.Join(errB, errA)
}

func (d *Device) erase(index uint32) (bool, error) {
	d.nv[index] = nvUnknown
	pub, err := d.nvPublic(index)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return false, nil
	}
	if err != nil || !ours(pub) {
		return false, err
	}
	if pub.Attributes.Written {
		magic, err := d.readOwn(index, 0, len(recordMagic))
		if err != nil || string(magic) != recordMagic {
			return false, err
		}
	}
	_, err = tpm2.NVUndefineSpace{
		AuthHandle: hierarchy(tpm2.TPMRHOwner), NVIndex: named(tpm2.TPMHandle(index)),
	}.Execute(d.tpm)
	return err == nil, failed("tpm2.NVUndefineSpace", tpm2.TPMRHOwner, err)
}
