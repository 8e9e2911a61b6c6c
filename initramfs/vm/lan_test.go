package vm_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// wires are network namespaces that nothing leads out of: one for the machines that QEMU makes, and one for
// each other host. They have no names, and are gone when the test is over.
type wires struct {
	*testing.T
	here  int // namespace of the switches and machines, which is the test's own
	ports int
}

// newWires moves the test onto a network of its own. Its thread is never given back: with it ends
// what the test leaves running there. A subtest is on no such network.
func newWires(t *testing.T) *wires {
	t.Helper()
	runtime.LockOSThread()
	w := &wires{T: t}
	w.here = w.unshare()
	return w
}

// unshare moves the thread onto a new network, where it has itself alone.
func (w *wires) unshare() (namespace int) {
	w.Helper()
	w.must(unix.Unshare(unix.CLONE_NEWNET))
	namespace, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	w.must(err)
	w.Cleanup(func() { unix.Close(namespace) })
	w.up("lo")
	return namespace
}

func (w *wires) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *wires) up(name string) {
	w.Helper()
	link, err := netlink.LinkByName(name)
	w.must(err)
	w.must(netlink.LinkSetUp(link))
}

func (w *wires) port(kind string) string {
	w.ports++
	return fmt.Sprint(kind, w.ports)
}

// lan is a switch.
type lan struct {
	*wires
	bridge netlink.Link
}

func (w *wires) lan() *lan {
	w.Helper()
	l := &lan{w, &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: w.port("switch")}}}
	w.must(netlink.LinkAdd(l.bridge))
	w.must(netlink.LinkSetUp(l.bridge))
	return l
}

// plug connects a link to the switch.
func (l *lan) plug(name string) {
	l.Helper()
	link, err := netlink.LinkByName(name)
	l.must(err)
	l.must(netlink.LinkSetMaster(link, l.bridge))
	l.must(netlink.LinkSetUp(link))
}

// nic makes a port for a machine, and returns what the machine is to be told of it.
func (l *lan) nic() string {
	l.Helper()
	name := l.port("tap")
	l.must(netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: name}, Mode: netlink.TUNTAP_MODE_TAP}))
	l.plug(name)
	return "tap,ifname=" + name + ",script=no,downscript=no"
}

// host is a computer at the switch.
type host struct {
	*lan
	namespace int
}

// host connects one, with addresses.
func (l *lan) host(addrs ...string) *host {
	l.Helper()
	defer l.enter(l.here)
	h := &host{l, l.unshare()}
	port := l.port("port")
	l.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: port, PeerNamespace: netlink.NsFd(l.here)}))
	eth0, err := netlink.LinkByName("eth0")
	l.must(err)
	for _, addr := range addrs {
		a, err := netlink.ParseAddr(addr)
		l.must(err)
		l.must(netlink.AddrAdd(eth0, a))
	}
	l.up("eth0")
	l.enter(l.here)
	l.plug(port)
	return h
}

func (w *wires) enter(namespace int) {
	w.Helper()
	w.must(unix.Setns(namespace, unix.CLONE_NEWNET))
}

// run has fn done on the host: what it starts and where it listens is there.
func (h *host) run(fn func()) {
	h.Helper()
	defer h.enter(h.here)
	h.enter(h.namespace)
	fn()
}

// dnsmasq serves DHCP, DNS and TFTP on the host as a configuration says, and returns what ends it.
func (h *host) dnsmasq(conf string) (stop func()) {
	h.Helper()
	dir := shortDir(h.T)
	file := filepath.Join(dir, "conf")
	h.must(os.WriteFile(file, []byte(conf), 0o600))
	log, err := os.Create(filepath.Join(dir, "log"))
	h.must(err)
	c := exec.Command("dnsmasq", "--keep-in-foreground", "--conf-file="+file, "--user=root", "--no-resolv", "--no-hosts",
		"--pid-file", "--dhcp-leasefile="+filepath.Join(dir, "leases"), "--log-facility=-", "--log-dhcp")
	c.Stdout, c.Stderr = log, log
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	h.run(func() { h.must(c.Start()) })
	stop = func() {
		c.Process.Kill()
		c.Wait()
		if text, err := os.ReadFile(log.Name()); err == nil && h.Failed() {
			h.Logf("dnsmasq:\n%s", text)
		}
	}
	h.Cleanup(stop)
	return stop
}
