package pid1

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
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
	lookEvery = 100 * time.Millisecond // for links whose drivers take their time
	linkWait  = 60 * time.Second       // a switch port that learns its tree says nothing for half a minute
	tellAfter = 10 * time.Second       // without a network, until the console says why
	trial     = 10 * time.Second       // of a lease before another may take its place; each time twice as long
	maxTrial  = time.Minute
	vainTries = 2               // to meet a head over it
	quietWait = 2 * time.Second // for what was told to end: a client that hangs must not keep the node
	noName    = "(none)"        // what the kernel calls a machine that has no name
)

// network brings links up in the background, all of them at once, as their drivers make them known. The
// first one with an address is the network: its routes and name servers are taken. Others that get an
// address later add just that, so that a head behind them can be reached too. Where no head is met, another
// lease becomes the network: whoever answers DHCP first does not keep the node from its head for good.
type network struct {
	console *console
	links   links
	up      chan struct{} // closed when there is a network
	vain    int           // tries to reach a head, since there was one or another lease
	stop    context.CancelFunc
	running sync.WaitGroup // all that stop ends

	taking sync.Mutex // held while addresses, routes or name servers change
	leases []*dhcp    // one a link, the network's first; none where the network is no lease
	since  time.Time  // of the first one's being that
	trial  time.Duration
	shown  map[string]bool
	host   string // the machine's name, where it came with the network

	mu    sync.Mutex
	ready bool
	state map[string]string // of each link that has no address: why
}

// startNetwork returns the network, and the context that its end ends.
func startNetwork(l links, c *console) (*network, context.Context) {
	n, ctx := newNetwork(l, c)
	n.running.Go(func() { n.watch(ctx) })
	return n, ctx
}

func newNetwork(l links, c *console) (*network, context.Context) {
	ctx, stop := context.WithCancel(context.Background())
	return &network{console: c, links: l, up: make(chan struct{}), stop: stop, state: map[string]string{}, trial: trial, shown: map[string]bool{}}, ctx
}

// quiet ends what asks for addresses, and waits for that, but not for ever: nothing is to be set up any more.
func (n *network) quiet() {
	n.stop()
	ended := make(chan struct{})
	go func() {
		n.running.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(quietWait):
	}
}

// pause waits, unless the context ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// online waits for the network, and after a while says what it waits for (agent.Config.Online). Failed is
// why no head was met over the network as it is.
func (n *network) online(ctx context.Context, failed error) error {
	wait, cancel := context.WithTimeout(ctx, tellAfter)
	defer cancel()
	select {
	case <-n.up:
	case <-wait.Done():
		return fmt.Errorf("no network yet: %s", n.why())
	}
	if failed == nil {
		n.vain = 0
	} else if n.vain++; n.vain >= vainTries {
		n.other(ctx)
	}
	return nil
}

// other makes another lease the network, if there is one: the next link's, and on the link that was the network
// one from a server that has not had its turn. Whom the node believes does not depend on it.
func (n *network) other(ctx context.Context) {
	n.taking.Lock()
	defer n.taking.Unlock()
	if len(n.leases) == 0 || time.Since(n.since) < n.trial {
		return
	}
	n.vain, n.since, n.trial = 0, time.Now(), min(2*n.trial, maxTrial)
	now := n.leases[0]
	if err := safely(func() error { return now.ask(ctx, 1) }); err != nil && len(n.leases) == 1 {
		return
	}
	n.leases = append(n.leases[1:], now)
	for _, d := range n.leases {
		d.drop()
	}
	var host string
	for i, d := range n.leases {
		if err := safely(func() error { return d.take(i == 0) }); err != nil {
			n.console.say("network: %s: %v", d.link.Attrs().Name, err)
		}
		host = cmp.Or(host, d.lease.P.HostName())
	}
	if err := n.nameServers(); err != nil {
		n.console.say("network: %v", err)
	}
	n.nameMachine(host)
	n.show(n.leases[0])
}

// show says which lease is tried now, the first time.
func (n *network) show(d *dhcp) {
	if line := d.link.Attrs().Name + ", which has " + d.what(); !n.shown[line] {
		n.shown[line] = true
		n.console.say("network: no head is met; going over %s", line)
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
				n.running.Go(func() { n.bring(ctx, l, how) })
			}
		}
		pause(ctx, lookEvery)
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
	d := &dhcp{link: l, asked: map[string]bool{}}
	for ctx.Err() == nil {
		n.note(l.Attrs().Name, errors.New("waiting for a carrier"))
		err := safely(func() error { return n.configure(ctx, d, how) })
		if err == nil {
			return
		}
		n.note(l.Attrs().Name, err)
		pause(ctx, lookEvery)
	}
}

// safely makes of a panic an error: it is to be one link's trouble alone.
func safely(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("internal error: %v", p)
		}
	}()
	return f()
}

// carrier sets a link up and waits for its carrier. (dhclient.IfUp cannot be told to stop waiting.)
func carrier(ctx context.Context, l netlink.Link) error {
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("set it up: %w", err)
	}
	for wait := time.Duration(0); wait < linkWait && ctx.Err() == nil; wait += lookEvery {
		now, err := netlink.LinkByIndex(l.Attrs().Index)
		if err != nil {
			return err
		}
		if s := now.Attrs().OperState; s == netlink.OperUp || s == netlink.OperUnknown {
			return nil
		}
		pause(ctx, lookEvery)
	}
	return errors.New("no carrier")
}

func (n *network) configure(ctx context.Context, d *dhcp, how link) error {
	name := d.link.Attrs().Name
	if err := carrier(ctx, d.link); err != nil {
		return err
	}
	switch {
	case how.method == static:
		return n.static(d.link, how)
	case how.method == auto6:
		return n.auto(ctx, d.link)
	}
	n.note(name, errors.New("waiting for a DHCP server"))
	answers, asked := make(chan error, 2), 0
	ask := func(method method, lease func() error) {
		if how.method&method != 0 {
			asked++
			n.running.Go(func() { answers <- safely(lease) })
		}
	}
	ask(dhcp4, func() error { return n.lease4(ctx, d) })
	ask(dhcp6, func() error { return n.lease6(ctx, d.link) })
	var err error
	for range asked {
		if err = <-answers; err == nil {
			return nil
		}
	}
	return err
}

// lease4 takes what a DHCP server gives.
func (n *network) lease4(ctx context.Context, d *dhcp) error {
	if err := d.ask(ctx, answerTries); err != nil {
		return err
	}
	n.taking.Lock()
	defer n.taking.Unlock()
	first := !n.isUp()
	if err := d.take(first); err != nil {
		d.lease = nil
		return err
	}
	if first || len(n.leases) > 0 {
		n.leases = append(n.leases, d)
	}
	return n.done(d.link.Attrs().Name, d.what(), d.lease.P.HostName())
}

// lease6 takes what a DHCPv6 server gives.
func (n *network) lease6(ctx context.Context, l netlink.Link) error {
	config := dhclient.Config{Timeout: answerWait, Retries: answerTries}
	r := <-dhclient.SendRequests(ctx, []netlink.Link{l}, false, true, config, linkWait)
	if r == nil || r.Err != nil {
		return errors.New("no DHCPv6 server answers")
	}
	n.taking.Lock()
	defer n.taking.Unlock()
	if err := take6(r.Lease.(*dhclient.Packet6)); err != nil {
		return err
	}
	return n.done(l.Attrs().Name, r.Lease.String(), "")
}

// take6 configures the link, and looks whether it has the address: the library drops the kernel's refusal.
func take6(p *dhclient.Packet6) error {
	if err := p.Configure(); err != nil {
		return err
	}
	addrs, err := netlink.AddrList(p.Link(), netlink.FAMILY_V6)
	if err != nil {
		return err
	}
	ip := p.Lease().IPv6Addr
	if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IP.Equal(ip) }) {
		return fmt.Errorf("the kernel refuses the DHCPv6 server's address %v", ip)
	}
	return nil
}

// static configures a link from the kernel command line.
func (n *network) static(l netlink.Link, how link) error {
	n.taking.Lock()
	defer n.taking.Unlock()
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
				n.taking.Lock()
				defer n.taking.Unlock()
				return n.done(l.Attrs().Name, a.IPNet.String()+" from a router", "")
			}
		}
		pause(ctx, lookEvery)
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
	if n.host == "" {
		n.nameMachine(host) // which may not be the first link's to give
	}
	if n.ready {
		return nil
	}
	if err := n.nameServers(); err != nil {
		return err
	}
	n.ready, n.since = true, time.Now()
	close(n.up)
	return nil
}

// nameServers makes those of the kernel command line, if any, take the place of a lease's.
func (n *network) nameServers() error {
	var ips []net.IP
	for _, a := range n.links.names {
		ips = append(ips, a.AsSlice())
	}
	if len(ips) == 0 {
		return nil
	}
	return dhclient.WriteDNSSettings(ips, nil, "", dhclient.ResolvConfPath)
}

// hostName is what is fit for a prompt and a log, whoever sent it.
var hostName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// nameMachine gives a machine that has no name, or an earlier lease's, the one that came with its network.
// The head decides whether it may have it.
func (n *network) nameMachine(host string) {
	if !hostName.MatchString(host) {
		host = ""
	}
	now, err := os.Hostname()
	named := err == nil && now != "" && now != noName && !strings.HasPrefix(now, "localhost")
	if named && now != n.host || host == n.host {
		return
	}
	n.host = host
	_ = unix.Sethostname([]byte(cmp.Or(host, noName))) // without it muster.node= has to say who this is
}
