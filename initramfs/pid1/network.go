package pid1

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/u-root/u-root/pkg/dhclient"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	lookEvery  = 100 * time.Millisecond // for links whose drivers take their time
	linkWait   = 60 * time.Second       // a switch port that learns its tree says nothing for half a minute
	answerWait = 4 * time.Second        // for a DHCP server, each time
	tellAfter  = 10 * time.Second       // without a network, until the console says why
)

// network brings links up in the background, all of them at once, as their drivers make them known. The
// first one with an address is the network: its routes and name servers are taken. Others that get an
// address later add just that, so that a head behind them can be reached too.
type network struct {
	console *console
	links   links
	up      chan struct{} // closed when there is a network

	mu    sync.Mutex
	ready bool
	state map[string]string // of each link that has no address: why
}

func startNetwork(ctx context.Context, l links, c *console) *network {
	n := &network{console: c, links: l, up: make(chan struct{}), state: map[string]string{}}
	go n.watch(ctx)
	return n
}

// online waits for the network, and after a while says what it waits for (agent.Config.Online).
func (n *network) online(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, tellAfter)
	defer cancel()
	select {
	case <-n.up:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("no network yet: %s", n.why())
	}
}

// linksDown ends all traffic. With packets under way Linux's virtio_net can spin for ever in a shutdown (6.1,
// since devices are broken off there).
func linksDown() {
	found, _ := netlink.LinkList()
	for _, l := range found {
		if hardware(l) {
			_ = netlink.LinkSetDown(l) // the machine ends all the same
		}
	}
}

func (n *network) why() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var parts []string
	for device, why := range n.state {
		parts = append(parts, device+": "+why)
	}
	slices.Sort(parts)
	if len(parts) == 0 {
		return "no network card that is asked for is known to the kernel (is its driver in the image?)"
	}
	return strings.Join(parts, "; ")
}

func (n *network) note(device string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.state[device] = err.Error()
}

func (n *network) watch(ctx context.Context) {
	begun := map[int]bool{}
	for ctx.Err() == nil {
		found, _ := netlink.LinkList()
		for _, l := range found {
			if begun[l.Attrs().Index] || !hardware(l) {
				continue
			}
			if how, ok := n.links.wanted(l.Attrs()); ok {
				begun[l.Attrs().Index] = true
				go n.bring(ctx, l, how)
			}
		}
		time.Sleep(lookEvery)
	}
}

// hardware says whether a device is behind the link; the kernel's own (lo, tunl0) have none.
func hardware(l netlink.Link) bool {
	_, err := os.Stat(filepath.Join("/sys/class/net", l.Attrs().Name, "device"))
	return err == nil
}

// wanted returns how to bring a link up, if at all: as the ip= word for it says; without any by DHCP,
// on the link of BOOTIF alone where there is one.
func (ls links) wanted(a *netlink.LinkAttrs) (link, bool) {
	booted := ls.boot == nil || bytes.Equal(ls.boot, a.HardwareAddr)
	for _, l := range ls.list {
		if l.device == a.Name || l.device == "" && booted {
			return l, l.method != off
		}
	}
	return link{method: dhcp4}, len(ls.list) == 0 && booted
}

// bring goes on until the link has an address.
func (n *network) bring(ctx context.Context, l netlink.Link, how link) {
	for ctx.Err() == nil {
		n.note(l.Attrs().Name, errors.New("waiting for a carrier"))
		err := n.try(ctx, l, how)
		if err == nil {
			return
		}
		n.note(l.Attrs().Name, err)
		time.Sleep(lookEvery)
	}
}

// try is configure, whose panic is this link's trouble alone.
func (n *network) try(ctx context.Context, l netlink.Link, how link) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("internal error: %v", p)
		}
	}()
	return n.configure(ctx, l, how)
}

func (n *network) configure(ctx context.Context, l netlink.Link, how link) error {
	if _, err := dhclient.IfUp(l.Attrs().Name, linkWait); err != nil {
		return errors.New("no carrier")
	}
	switch {
	case how.method == static:
		return n.static(l, how)
	case how.method == auto6:
		return n.auto(ctx, l)
	}
	n.note(l.Attrs().Name, errors.New("waiting for a DHCP server"))
	config := dhclient.Config{Timeout: answerWait, Retries: 3}
	err := errors.New("no DHCP server answers")
	for r := range dhclient.SendRequests(ctx, []netlink.Link{l}, how.method&dhcp4 != 0, how.method&dhcp6 != 0, config, linkWait) {
		if r.Err == nil {
			err = n.lease(r.Lease)
		}
	}
	return err
}

// lease takes what a DHCP server gave.
func (n *network) lease(lease dhclient.Lease) error {
	name := lease.Link().Attrs().Name
	packet, ok := lease.(*dhclient.Packet4)
	if !ok {
		if err := lease.Configure(); err != nil {
			return err
		}
		return n.done(name, lease.String(), "")
	}
	// Not every part of the library expects a mask with holes, and anybody may answer.
	if ones, bits := packet.Lease().Mask.Size(); bits != 32 || ones == 0 {
		return fmt.Errorf("the DHCP server gives the netmask %v", net.IP(packet.P.SubnetMask()))
	}
	host := packet.P.HostName()
	if n.isUp() {
		if err := netlink.AddrReplace(lease.Link(), &netlink.Addr{IPNet: packet.Lease()}); err != nil {
			return err
		}
	} else if err := lease.Configure(); err != nil {
		return err
	}
	return n.done(name, fmt.Sprintf("%s from the DHCP server %s", packet.Lease(), packet.P.ServerIdentifier()), host)
}

// static configures a link from the kernel command line.
func (n *network) static(l netlink.Link, how link) error {
	ip := &net.IPNet{IP: how.address.Addr().AsSlice(), Mask: net.CIDRMask(how.address.Bits(), how.address.Addr().BitLen())}
	if err := netlink.AddrReplace(l, &netlink.Addr{IPNet: ip}); err != nil {
		return fmt.Errorf("address %s: %w", how.address, err)
	}
	if how.gateway.IsValid() {
		if err := netlink.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: how.gateway.AsSlice()}); err != nil {
			return fmt.Errorf("gateway %s: %w", how.gateway, err)
		}
	}
	return n.done(l.Attrs().Name, how.address.String()+" from the kernel command line", how.host)
}

// auto waits for the address that the kernel makes from a router's announcement.
func (n *network) auto(ctx context.Context, l netlink.Link) error {
	for wait := time.Duration(0); wait < linkWait && ctx.Err() == nil; wait += lookEvery {
		addrs, err := netlink.AddrList(l, netlink.FAMILY_V6)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			if a.IP.IsGlobalUnicast() && a.Flags&unix.IFA_F_TENTATIVE == 0 {
				return n.done(l.Attrs().Name, a.IPNet.String()+" from a router", "")
			}
		}
		time.Sleep(lookEvery)
	}
	return errors.New("no router announces a prefix")
}

func (n *network) isUp() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ready
}

// done is a link with an address.
func (n *network) done(device, what, host string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.state, device)
	n.console.say("network: %s has %s", device, what)
	nameMachine(host) // which may not be the first link's to give
	if n.ready {
		return nil
	}
	if len(n.links.names) > 0 {
		if err := writeResolvConf(n.links.names); err != nil {
			return err
		}
	}
	n.ready = true
	close(n.up)
	return nil
}

func writeResolvConf(names []netip.Addr) error {
	var ips []net.IP
	for _, a := range names {
		ips = append(ips, a.AsSlice())
	}
	return dhclient.WriteDNSSettings(ips, nil, "", dhclient.ResolvConfPath)
}

// hostName is what is fit for a prompt and a log, whoever sent it.
var hostName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// nameMachine gives a machine that has no name the one that came with its network. The head decides
// whether it may have it.
func nameMachine(host string) {
	if !hostName.MatchString(host) {
		return
	}
	if now, err := os.Hostname(); err != nil || now == "" || now == "(none)" || strings.HasPrefix(now, "localhost") {
		_ = unix.Sethostname([]byte(host)) // without it muster.node= has to say who this is
	}
}
