package testtpm

import (
	"encoding/binary"
	"fmt"
	"io"
	"syscall"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// ResourceManager does to commands what the kernel does behind /dev/tpmrm0
// (drivers/char/tpm/tpm2-space.c): between commands nothing stays loaded. Before each command every
// live object and session is loaded, after it every one is saved, and objects are flushed too. Handles
// of objects are virtual. Put a [Counter] behind it to count what the chip sees.
type ResourceManager struct {
	chip     transport.TPM
	commands map[tpm2.TPMCC]uint32 // TPMA_CC
	objects  [3]resource
	sessions [3]resource
}

type resource struct {
	handle  uint32 // physical, while loaded; 0 for a free slot
	context []byte
}

const virtual = 0x80FFFFFF // the first virtual handle; they count downwards

// Manage returns a resource manager in front of chip for one open file.
func Manage(chip transport.TPM) (*ResourceManager, error) {
	m := &ResourceManager{chip: chip, commands: map[tpm2.TPMCC]uint32{}}
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapCommands, Property: 0x11F, PropertyCount: 256}.Execute(chip)
	if err != nil {
		return nil, err
	}
	list, err := rsp.CapabilityData.Data.Command()
	if err != nil {
		return nil, err
	}
	for _, attributes := range list.CommandAttributes {
		raw := binary.BigEndian.Uint32(tpm2.Marshal(attributes))
		m.commands[tpm2.TPMCC(raw&0xFFFF)] = raw
	}
	return m, nil
}

// ServeManaged makes chip a TPM that several programs can use at once, as /dev/tpmrm0 is: each connection has
// a resource manager of its own, and one command at a time reaches the chip.
func ServeManaged(chip transport.TPM, path string) (spec string, closer io.Closer, err error) {
	return serveEach(path, func() (transport.TPM, func(), error) {
		m, err := Manage(chip)
		return m, func() { m.Close() }, err
	})
}

func (m *ResourceManager) Send(command []byte) ([]byte, error) {
	attributes := m.commands[code(command)]
	handles := int(attributes >> 25 & 7)
	if code(command) == tpm2.TPMCCFlushContext {
		handles = 1 // it is a parameter, but the kernel treats it as a handle
	}
	if err := m.load(); err != nil {
		return nil, err
	}
	command = append([]byte(nil), command...)
	for i := range handles {
		field := command[headerSize+4*i:]
		h := binary.BigEndian.Uint32(field)
		if h>>24 != 0x80 {
			continue
		}
		slot := virtual - h
		if slot >= uint32(len(m.objects)) || m.objects[slot].handle == 0 {
			m.save()
			return nil, fmt.Errorf("resource manager: handle %#x: %w", h, syscall.EINVAL)
		}
		binary.BigEndian.PutUint32(field, m.objects[slot].handle)
	}
	response, err := m.chip.Send(command)
	if err != nil {
		return nil, err
	}
	if attributes>>28&1 != 0 && rc(response) == 0 {
		if err := m.adopt(response); err != nil {
			m.save()
			return nil, err
		}
	}
	m.hideHandles(command, response)
	return response, m.save()
}

// adopt takes a new object or session into the tables.
func (m *ResourceManager) adopt(response []byte) error {
	field := response[headerSize:]
	h := binary.BigEndian.Uint32(field)
	table := &m.objects
	if kind := h >> 24; kind == 2 || kind == 3 {
		table = &m.sessions
	} else if kind != 0x80 {
		return nil
	}
	for i := range table {
		if table[i].handle == 0 && table[i].context == nil {
			table[i].handle = h
			if table == &m.objects {
				binary.BigEndian.PutUint32(field, virtual-uint32(i))
			}
			return nil
		}
	}
	if _, err := m.flush(h); err != nil {
		return err
	}
	return fmt.Errorf("resource manager: %w", syscall.ENOMEM)
}

// hideHandles gives the virtual handles in an answer that lists transient ones.
func (m *ResourceManager) hideHandles(command, response []byte) {
	if code(command) != tpm2.TPMCCGetCapability || rc(response) != 0 || len(response) < headerSize+9 ||
		binary.BigEndian.Uint32(command[headerSize:]) != uint32(tpm2.TPMCapHandles) {
		return
	}
	for b := response[headerSize+9:]; len(b) >= 4; b = b[4:] {
		for i, object := range m.objects {
			if object.handle != 0 && binary.BigEndian.Uint32(b) == object.handle {
				binary.BigEndian.PutUint32(b, virtual-uint32(i))
			}
		}
	}
}

// load brings everything back. A context that is gone is forgotten.
func (m *ResourceManager) load() error {
	for _, table := range []*[3]resource{&m.objects, &m.sessions} {
		for i := range table {
			if table[i].context == nil {
				continue
			}
			response, err := m.raw(tpm2.TPMCCContextLoad, table[i].context)
			if err != nil {
				return err
			}
			if rc(response) != 0 {
				table[i] = resource{}
				continue
			}
			table[i] = resource{handle: binary.BigEndian.Uint32(response[headerSize:])}
		}
	}
	return nil
}

// save puts everything away. What the command itself flushed or ended is forgotten.
func (m *ResourceManager) save() error {
	for _, table := range []*[3]resource{&m.objects, &m.sessions} {
		for i := range table {
			h := table[i].handle
			if h == 0 {
				continue
			}
			response, err := m.raw(tpm2.TPMCCContextSave, binary.BigEndian.AppendUint32(nil, h))
			if err != nil {
				return err
			}
			if rc(response) != 0 {
				table[i] = resource{}
				continue
			}
			table[i] = resource{context: response[headerSize:]}
			if table == &m.objects {
				if _, err := m.flush(h); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (m *ResourceManager) flush(h uint32) ([]byte, error) {
	return m.raw(tpm2.TPMCCFlushContext, binary.BigEndian.AppendUint32(nil, h))
}

func (m *ResourceManager) raw(cc tpm2.TPMCC, parameters []byte) ([]byte, error) {
	b := binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMSTNoSessions))
	b = binary.BigEndian.AppendUint32(b, uint32(headerSize+len(parameters)))
	b = binary.BigEndian.AppendUint32(b, uint32(cc))
	return m.chip.Send(append(b, parameters...))
}

func rc(response []byte) uint32 { return binary.BigEndian.Uint32(response[6:]) }

// Close flushes what the open file left behind, as the kernel does.
func (m *ResourceManager) Close() error {
	if err := m.load(); err != nil {
		return err
	}
	for _, table := range []*[3]resource{&m.objects, &m.sessions} {
		for i := range table {
			if table[i].handle != 0 {
				if _, err := m.flush(table[i].handle); err != nil {
					return err
				}
				table[i] = resource{}
			}
		}
	}
	return nil
}
