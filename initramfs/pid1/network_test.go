package pid1

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/u-root/u-root/pkg/dhclient"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// wire is a network of two ends that nothing leads out of: eth0 is the node's, and the test speaks at the other.
type wire struct {
	*testing.T
	eth0, peer netlink.Link
	out        bytes.Buffer // the console
	*network
	ctx context.Context
}

// aloneKey is set for a test binary that has the machine to itself, as /init has.
const aloneKey = "MUSTER_TEST_ALONE"

// alone runs the test in a process with network, name, mounts and /etc of its own, because the network's
// goroutines go from thread to thread, and what ends /init ends the process. It returns nil where the test
// has been run.
func alone(t *testing.T) *wire {
	t.Helper()
	needRoot(t, "for a network of its own")
	if os.Getenv(aloneKey) == "" {
		c := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.count=1")
		c.Env = append(os.Environ(), aloneKey+"=1")
		c.SysProcAttr = &syscall.SysProcAttr{
			Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS, Pdeathsig: syscall.SIGKILL,
		}
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return nil
	}
	w := &wire{T: t}
	w.must(unix.Mount("tmpfs", "/etc", "tmpfs", 0, ""))
	w.must(unix.Sethostname([]byte(noName)))
	w.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "peer"}))
	var err error
	w.eth0, err = netlink.LinkByName("eth0")
	w.must(err)
	w.peer, err = netlink.LinkByName("peer")
	w.must(err)
	w.must(netlink.LinkSetUp(w.peer))
	w.network, w.ctx = newNetwork(links{}, &console{w: &w.out})
	t.Cleanup(w.quiet)
	var cancel context.CancelFunc
	w.ctx, cancel = context.WithTimeout(w.ctx, 30*time.Second) // for a node that never comes to a lease
	t.Cleanup(cancel)
	return w
}

func needRoot(t *testing.T, why string) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("needs root, %s", why)
	}
	t.Skipf("needs root, %s", why)
}

func (w *wire) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// addresses are the node's.
func (w *wire) addresses(family int) (all []string) {
	w.Helper()
	addrs, err := netlink.AddrList(w.eth0, family)
	w.must(err)
	for _, a := range addrs {
		if !a.IP.IsLinkLocalUnicast() {
			all = append(all, a.IPNet.String())
		}
	}
	return all
}

// server4 is a DHCP server.
type server4 struct {
	address, lease net.IP
	mask           net.IPMask
}

var (
	rogue    = server4{net.IPv4(192, 0, 2, 66), net.IPv4(192, 0, 2, 67), net.IPv4Mask(255, 0, 255, 0)}
	ordinary = server4{net.IPv4(192, 0, 2, 1), net.IPv4(192, 0, 2, 7), net.CIDRMask(24, 32)}
)

// serve answers everybody, each server in its turn. Before each answer comes a frame.
func (w *wire) serve(frame []byte, servers ...server4) {
	w.Helper()
	w.must(carrier(w.ctx, w.eth0))
	w.must(carrier(w.ctx, w.peer)) // until then what it sends is lost
	conn, err := nclient4.NewRawUDPConn("peer", dhcpv4.ServerPort)
	w.must(err)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	w.must(err)
	to := &unix.SockaddrLinklayer{Protocol: 0x0008, Ifindex: w.peer.Attrs().Index, Halen: 6, Addr: [8]byte{255, 255, 255, 255, 255, 255}} // IPv4
	var serving sync.WaitGroup
	w.Cleanup(func() { conn.Close(); serving.Wait(); unix.Close(fd) })
	serving.Go(func() {
		for b := make([]byte, 2048); ; {
			n, _, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			m, err := dhcpv4.FromBytes(b[:n])
			if err != nil {
				w.Error(err)
				continue
			}
			for _, s := range servers {
				answer := s.answer(m)
				if answer == nil {
					continue
				}
				if frame != nil {
					if err := unix.Sendto(fd, frame, 0, to); err != nil {
						w.Error(err)
					}
				}
				if _, err := conn.WriteTo(answer.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpv4.ClientPort}); err != nil {
					w.Error(err)
				}
			}
		}
	})
}

// answer is what the server says to a message, nil for one that is another server's.
func (s server4) answer(m *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
	kind := dhcpv4.MessageTypeOffer
	if m.MessageType() == dhcpv4.MessageTypeRequest {
		if !m.ServerIdentifier().Equal(s.address) {
			return nil
		}
		kind = dhcpv4.MessageTypeAck
	}
	answer, err := dhcpv4.NewReplyFromRequest(m, dhcpv4.WithMessageType(kind), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(s.address)),
		dhcpv4.WithYourIP(s.lease), dhcpv4.WithNetmask(s.mask), dhcpv4.WithRouter(s.address), dhcpv4.WithDNS(s.address), dhcpv4.WithLeaseTime(3600))
	if err != nil {
		return nil
	}
	return answer
}

// shortFrame is an IPv4 packet for UDP that says of itself that it ends with its header. What fills the frame up
// looks like a UDP header to the DHCP client's port. It used to panic the client's library, in a goroutine of its
// own.
func shortFrame() []byte {
	b := make([]byte, 46)
	b[0], b[3], b[8], b[9] = 4<<4|5, 20, 64, unix.IPPROTO_UDP
	copy(b[16:], net.IPv4bcast.To4())
	binary.BigEndian.PutUint16(b[20:], dhcpv4.ServerPort)
	binary.BigEndian.PutUint16(b[22:], dhcpv4.ClientPort)
	binary.BigEndian.PutUint16(b[24:], 8)
	return b
}

// TestShortFrame: frames that are no DHCP do not end /init, nor keep it from its lease.
func TestShortFrame(t *testing.T) {
	w := alone(t)
	if w == nil {
		return
	}
	w.serve(shortFrame(), ordinary)
	w.bring(w.ctx, w.eth0, link{method: dhcp4})
	w.leased()
}

// leased wants the ordinary server's lease, and nothing else.
func (w *wire) leased() {
	w.Helper()
	if got := w.addresses(netlink.FAMILY_V4); len(got) != 1 || got[0] != "192.0.2.7/24" {
		w.Errorf("eth0 has %v", got)
	}
	if got, want := w.out.String(), "muster: network: eth0 has 192.0.2.7/24 from the DHCP server 192.0.2.1\r\n"; got != want {
		w.Errorf("the console has %q", got)
	}
	if got, err := os.ReadFile("/etc/resolv.conf"); err != nil || string(got) != "nameserver 192.0.2.1\n" {
		w.Errorf("resolv.conf is %q, %v", got, err)
	}
}

// TestNetmask: a lease whose netmask has holes is refused, and the next server has its turn. Part of the library
// panics at such a mask.
func TestNetmask(t *testing.T) {
	w := alone(t)
	if w == nil {
		return
	}
	w.serve(nil, rogue, ordinary)
	d := &dhcp{link: w.eth0, asked: map[string]bool{}}
	if err := w.configure(w.ctx, d, link{method: dhcp4}); err == nil || err.Error() != "the DHCP server 192.0.2.66 gives the netmask 255.0.255.0" || d.lease != nil {
		t.Errorf("%v, %v", d.lease, err)
	}
	w.bring(w.ctx, w.eth0, link{method: dhcp4})
	w.leased()
}

// TestSafely: a panic on one link is that link's trouble, wherever it comes from.
func TestSafely(t *testing.T) {
	w := alone(t)
	if w == nil {
		return
	}
	w.serve(nil, ordinary)
	d := &dhcp{link: w.eth0} // has no room for servers
	if err := w.configure(w.ctx, d, link{method: dhcp4}); err == nil || !strings.HasPrefix(err.Error(), "internal error: ") {
		t.Error(err)
	}
}

// TestQuiet: when the network has been told to stop it is over, whatever it was at.
func TestQuiet(t *testing.T) {
	w := alone(t)
	if w == nil {
		return
	}
	deaf, err := nclient4.NewRawUDPConn("peer", dhcpv4.ServerPort)
	w.must(err)
	defer deaf.Close()
	ended := false
	w.running.Go(func() {
		w.bring(w.ctx, w.eth0, link{method: dhcp4 | dhcp6})
		ended = true
	})
	_, _, err = deaf.ReadFrom(make([]byte, 2048)) // the client is at it
	w.must(err)
	w.quiet()
	if !ended {
		t.Error("it goes on")
	}
}

// TestQuietWithoutCarrier: waiting for a cable ends as well.
func TestQuietWithoutCarrier(t *testing.T) {
	w := alone(t)
	if w == nil {
		return
	}
	w.must(netlink.LinkSetDown(w.peer))
	ended := false
	w.running.Go(func() {
		w.bring(w.ctx, w.eth0, link{method: dhcp4})
		ended = true
	})
	for !strings.Contains(w.why(), "waiting for a carrier") {
		runtime.Gosched()
	}
	w.quiet()
	if !ended {
		t.Error("it goes on")
	}
}

// TestQuietIsBounded: what does not end does not keep the node.
func TestQuietIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, _ := newNetwork(links{}, nil)
		hangs := make(chan struct{})
		n.running.Go(func() { <-hangs })
		n.quiet()
		close(hangs)
	})
}

// TestAddress6: an address that the kernel does not take is none.
func TestAddress6(t *testing.T) {
	w := alone(t)
	if w == nil {
		return
	}
	w.must(netlink.LinkSetUp(w.eth0))
	take := func(address string) error {
		m, err := dhcpv6.NewMessage(dhcpv6.WithIANA(dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP(address), PreferredLifetime: 3600e9, ValidLifetime: 3600e9}))
		return errors.Join(err, take6(dhclient.NewPacket6(w.eth0, m)))
	}
	if err := take("ff02::7"); err == nil || err.Error() != "the kernel refuses the DHCPv6 server's address ff02::7" {
		t.Errorf("a multicast address: %v", err)
	}
	if err := take("2001:db8::7"); err != nil {
		t.Error(err)
	}
	if got := w.addresses(netlink.FAMILY_V6); len(got) != 1 || got[0] != "2001:db8::7/128" {
		t.Errorf("eth0 has %v", got)
	}
}
