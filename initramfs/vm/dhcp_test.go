package vm_test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"

	"muster/initramfs/vm"
)

// newSite is a rig on a network of its own. Nobody serves DHCP there yet: that is for home, where the head is.
func newSite(t *testing.T) (r *rig, home *host) {
	t.Helper()
	needFull(t, "dnsmasq")
	t.Parallel()
	l := newWires(t).lan()
	home = l.host("10.54.0.1/24")
	dir := shortDir(t)
	r = &rig{T: t, node: &vm.Machine{Dir: filepath.Join(dir, "node"), NICs: []string{l.nic()}}}
	r.head = home.head(dir, "10.54.0.1", "head")
	r.enable()
	return r, home
}

// head serves a cluster of the host's own, for nodes that know it under names.
func (h *host) head(dir string, names ...string) (head *vm.Head) {
	h.Helper()
	h.run(func() {
		var err error
		head, err = vm.NewHeadAt(dir, parts.muster, "0.0.0.0", 8443, names...)
		h.must(err)
	})
	h.Cleanup(head.Stop)
	return head
}

// rogue serves another cluster under the names of this one's head, to whoever believes it.
func (h *host) rogue() *vm.Head {
	h.Helper()
	head := h.head(shortDir(h.T), "head", "10.54.0.1")
	if _, err := head.Admin("certs", "enable", "-i", "n0"); err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() {
		if strings.Contains(head.Log(), "path=/v1/") {
			h.Errorf("the node asked a stranger:\n%s", head.Log())
		}
	})
	return head
}

// ours is the configuration that we ship. Late is for a server that leaves others the first word.
func ours(t *testing.T, late ...string) string {
	t.Helper()
	conf, err := os.ReadFile("../ipxe/dnsmasq.conf")
	if err != nil {
		t.Fatal(err)
	}
	return string(conf) + strings.Join(late, "\n") + "\n"
}

const late = "dhcp-reply-delay=2"

// theirs answers at once, and leads to the rogue.
const theirs = `interface=eth0
bind-interfaces
no-ping
dhcp-range=10.54.0.200,10.54.0.250,1h
dhcp-host=52:54:00:4d:55:01,n66
host-record=head,10.54.0.66
`

// TestRogueDHCP: a node on whose network another DHCP server answers, first or alone, obeys nobody but its own
// head, and finds it as soon as there is a way.
func TestRogueDHCP(t *testing.T) {
	t.Run("names its own head", func(t *testing.T) {
		r, home := newSite(t)
		r.head.Name = "head"
		bad := home.lan.host("10.54.0.66/24")
		bad.rogue()
		bad.dnsmasq(theirs)
		r.golden("rogue-dhcp", r.boot("muster.node= muster.wait=8s"))
		r.is("open")

		ctx := within(t)
		b := r.power(ctx, "muster.node=")
		if err := b.WaitFor(ctx, `what answers is not a head of this cluster`); err != nil {
			t.Fatal(err)
		}
		home.dnsmasq(ours(t))
		if err := b.Off(ctx); err != nil {
			t.Fatal(err)
		}
		r.golden("rogue-dhcp-first", b)
		r.is("active")
	})
	t.Run("leads nowhere", func(t *testing.T) {
		r, home := newSite(t)
		home.dnsmasq(ours(t, late))
		home.lan.host("10.66.0.1/24").dnsmasq("interface=eth0\nbind-interfaces\nno-ping\ndhcp-range=10.66.0.100,10.66.0.199,1h\n")
		b := r.boot("")
		r.says(b, `network: eth0 has 10\.66\.0\.\d+/24 from the DHCP server 10\.66\.0\.1\n`)
		r.says(b, `network: no head is met; going over eth0, which has 10\.54\.0\.\d+/24 from the DHCP server 10\.54\.0\.1\n`)
		r.says(b, `n0: enrolled at https://10\.54\.0\.1:8443`)
		r.is("active")
	})
	t.Run("does not keep to its offers", func(t *testing.T) {
		r, home := newSite(t)
		home.dnsmasq(ours(t, late))
		home.lan.host("10.54.0.66/24").promise()
		r.says(r.boot(""), `n0: enrolled at https://10\.54\.0\.1:8443`)
		r.is("active")
	})
	t.Run("is on another link, as the head", func(t *testing.T) {
		r, home := newSite(t)
		home.dnsmasq(ours(t, late))
		another := home.wires.lan()
		bad := another.host("10.54.0.1/24")
		bad.rogue()
		bad.dnsmasq(theirs)
		r.node.NICs = append([]string{another.nic()}, r.node.NICs...)
		b := r.boot("")
		r.says(b, `what answers is not a head of this cluster; waiting \(head=10\.54\.0\.1:8443`)
		r.says(b, `network: no head is met; going over eth1, which has 10\.54\.0\.\d+/24 from the DHCP server 10\.54\.0\.1\n`)
		r.says(b, `n0: enrolled at https://10\.54\.0\.1:8443`)
		r.is("active")
	})
}

// TestRogueBootScript: whoever writes the kernel command line names head and CA, but not to an image that has its
// own. The first part is why it should have them where the network is not trusted.
func TestRogueBootScript(t *testing.T) {
	needFull(t)
	r := newRig(t)
	r.enable()
	rogue, err := vm.NewHead(shortDir(t), parts.muster)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(rogue.Stop)
	if _, err := rogue.Admin("certs", "enable", "-i", "n0"); err != nil {
		t.Fatal(err)
	}
	victim := &rig{T: t, head: r.head, node: &vm.Machine{Dir: filepath.Join(shortDir(t), "node")}}
	victim.says(victim.boot(rogue.Words()), `n0: enrolled at `+rogue.URL())
	before := rogue.Log()

	dir := shortDir(t)
	ca, err := r.head.Admin("ca", "export")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), []byte(ca), 0o644); err != nil {
		t.Fatal(err)
	}
	s := r.software(rogue.Words())
	s.Initrd = filepath.Join(dir, "image.cpio.gz")
	if err := buildImage(s.Initrd, "-ca", filepath.Join(dir, "ca.pem"), "-head", r.head.URL()); err != nil {
		t.Fatal(err)
	}
	r.says(r.off(s), `n0: enrolled at `+r.head.URL())
	r.is("active")
	if rogue.Log() != before {
		t.Errorf("the node went to a stranger:\n%s", rogue.Log())
	}
}

// promise offers an address to everybody, and then does not give it.
func (h *host) promise() {
	h.Helper()
	h.run(func() {
		server, err := server4.NewServer("eth0", &net.UDPAddr{Port: dhcpv4.ServerPort}, func(conn net.PacketConn, _ net.Addr, m *dhcpv4.DHCPv4) {
			if m.MessageType() != dhcpv4.MessageTypeDiscover {
				return
			}
			me := net.IPv4(10, 54, 0, 66)
			if offer, err := dhcpv4.NewReplyFromRequest(m, dhcpv4.WithMessageType(dhcpv4.MessageTypeOffer),
				dhcpv4.WithServerIP(me), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(me)), dhcpv4.WithYourIP(net.IPv4(10, 54, 0, 210))); err == nil {
				conn.WriteTo(offer.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpv4.ClientPort})
			}
		})
		h.must(err)
		go server.Serve()
		h.Cleanup(func() { server.Close() })
	})
}
