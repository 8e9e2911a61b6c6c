package modules

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// machine is a modules directory and a /sys. No module gets into the kernel that runs the test.
type machine struct {
	t        *testing.T
	dir, sys string
	inserted []string // "name parameters" of each module
	fails    map[string]error
	plugs    map[string]string // modalias of the device that a module makes
}

// newMachine has a module for each line of dep, whose content is its name.
func newMachine(t *testing.T, dep, alias, softdep string) *machine {
	m := &machine{t: t, dir: t.TempDir(), sys: t.TempDir(), fails: map[string]error{}, plugs: map[string]string{}}
	for name, text := range map[string]string{
		depFile: dep, aliasFile: alias, softdepFile: softdep,
		builtinFile: "kernel/ext4.ko\n", builtinModinfoFile: "ext4.alias=fs-ext3\x00",
	} {
		m.write(filepath.Join(m.dir, name), text)
	}
	for line := range strings.Lines(dep) {
		path, _, _ := strings.Cut(line, ":")
		m.write(filepath.Join(m.dir, path), Name(path))
	}
	return m
}

func (m *machine) write(file, text string) {
	m.t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) plug(bus, modalias string) {
	m.t.Helper()
	m.write(filepath.Join(m.sys, "bus", bus, "devices", strings.ReplaceAll(modalias, "/", "!"), "modalias"), modalias+"\n")
}

func (m *machine) insert(file *os.File, params string) error {
	b, err := io.ReadAll(file)
	if err != nil {
		return err
	}
	name := string(b)
	if err := m.fails[name]; err != nil {
		return err
	}
	m.inserted = append(m.inserted, strings.TrimSpace(name+" "+params))
	if modalias := m.plugs[name]; modalias != "" {
		m.plug("made", modalias)
	}
	return nil
}

func (m *machine) loader(cmdline string) *Loader {
	m.t.Helper()
	l, err := Open(m.dir, cmdline, m.insert)
	if err != nil {
		m.t.Fatal(err)
	}
	return l
}

const (
	virtioDep = `ring.ko:
virtio.ko: ring.ko
virtio_pci.ko: virtio.ko ring.ko
failover.ko:
virtio_net.ko: failover.ko virtio.ko ring.ko
igb.ko: failover.ko
unwanted.ko:
`
	virtioAlias = `alias pci:v00001AF4d* virtio_pci
alias virtio:d00000001v* virtio_net
alias pci:v00008086d00001533* igb
alias pci:v0000FFFF* unwanted
alias fs-thing unwanted
alias pci:* gone
`
)

// TestDevices: what the devices need is loaded, each module after its needs and once, and what comes of it too.
func TestDevices(t *testing.T) {
	m := newMachine(t, virtioDep, virtioAlias, "")
	m.plug("pci", "pci:v00001AF4d00001041sv0")
	m.plug("acpi", "acpi:PNP0C0C:")
	m.plugs["virtio_pci"] = "virtio:d00000001v00001AF4"
	l := m.loader("virtio_net.napi_tx=0 ring.x")
	loaded, errs := l.Devices(m.sys)
	want := []string{"ring", "virtio", "virtio_pci", "failover", "virtio_net"}
	if !slices.Equal(loaded, want) {
		t.Errorf("loaded %v, want %v", loaded, want)
	}
	if want := []string{"ring x", "virtio", "virtio_pci", "failover", "virtio_net napi_tx=0"}; !slices.Equal(m.inserted, want) {
		t.Errorf("inserted %q, want %q", m.inserted, want)
	}
	// Its index names a module that it has not.
	if len(errs) != 1 || errs[0].Error() != "module gone: "+ErrUnknown.Error() {
		t.Errorf("errors %v", errs)
	}
	if loaded, errs := l.Devices(m.sys); len(loaded) != 0 || errs != nil {
		t.Errorf("with nothing new: loaded %v, %v", loaded, errs)
	}
	m.plug("pci", "pci:v00008086d00001533sv1")
	if loaded, errs := l.Devices(m.sys); !slices.Equal(loaded, []string{"igb"}) || errs != nil {
		t.Errorf("a device plugged in: loaded %v, %v", loaded, errs)
	}
}

// TestOneBadModule: who needs it is named with it, and all others are loaded.
func TestOneBadModule(t *testing.T) {
	m := newMachine(t, virtioDep, virtioAlias, "")
	m.plug("pci", "pci:v00001AF4d00001041sv0")
	m.plug("pci", "pci:v00008086d00001533sv1")
	m.plug("virtio", "virtio:d00000001v00001AF4")
	broken := errors.New("it is broken")
	m.fails["failover"] = broken
	l := m.loader("")
	loaded, errs := l.Devices(m.sys)
	if want := []string{"ring", "virtio", "virtio_pci"}; !slices.Equal(loaded, want) {
		t.Errorf("loaded %v, want %v", loaded, want)
	}
	texts := []string{}
	for _, err := range errs {
		texts = append(texts, err.Error())
	}
	if want := []string{"module gone: " + ErrUnknown.Error(), "module igb: module failover: it is broken", "module virtio_net: module failover: it is broken"}; !slices.Equal(texts, want) {
		t.Errorf("errors %q, want %q", texts, want)
	}
	var named *Error
	if err := l.Load("igb"); !errors.As(err, &named) || named.Module != "igb" || !errors.Is(err, broken) {
		t.Errorf("asked again: %v", err)
	}
}

func TestLoad(t *testing.T) {
	m := newMachine(t, virtioDep, virtioAlias+"alias two igb\nalias two missing\n", "")
	l := m.loader("")
	for _, name := range []string{"fs-thing", "virtio-pci", "virtio_pci", "ext4", "fs-ext3", "two"} {
		if err := l.Load(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if want := []string{"unwanted", "ring", "virtio", "virtio_pci", "failover", "igb"}; !slices.Equal(m.inserted, want) {
		t.Errorf("inserted %q, want %q", m.inserted, want)
	}
	for _, name := range []string{"xfs", "fs-xfs", ""} {
		if err := l.Load(name); !errors.Is(err, ErrUnknown) {
			t.Errorf("%q: %v", name, err)
		}
	}
	os.Remove(filepath.Join(m.dir, "virtio_net.ko"))
	if err := l.Load("virtio_net"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a module without a file: %v", err)
	}
}

// TestSoftdeps: before and after, by alias too, and no matter if there is none, it fails, or it wants us.
func TestSoftdeps(t *testing.T) {
	dep := "mlx4_core.ko:\nmlx4_en.ko: mlx4_core.ko\ncrc.ko:\nbad.ko:\n"
	m := newMachine(t, dep, "alias crypto-crc crc\n",
		"softdep mlx4_core pre: crypto-crc absent bad post: mlx4_en\nsoftdep crc pre: mlx4_core\n")
	m.fails["bad"] = errors.New("no")
	if err := m.loader("").Load("mlx4_core"); err != nil {
		t.Error(err)
	}
	if want := []string{"crc", "mlx4_core", "mlx4_en"}; !slices.Equal(m.inserted, want) {
		t.Errorf("inserted %q, want %q", m.inserted, want)
	}
}

func TestOpen(t *testing.T) {
	if l, err := Open(t.TempDir(), "", nil); !errors.Is(err, os.ErrNotExist) || l != nil {
		t.Errorf("no modules.dep: %v, %v", l, err)
	}
	m := newMachine(t, "a.ko:\n", "", "")
	for _, name := range []string{aliasFile, softdepFile, builtinFile, builtinModinfoFile} {
		os.Remove(filepath.Join(m.dir, name))
	}
	if x, err := Read(m.dir); err != nil || !reflect.DeepEqual(x, Index{Modules: []Module{{Path: "a.ko"}}}) {
		t.Errorf("modules.dep alone: %+v, %v", x, err)
	}
}
