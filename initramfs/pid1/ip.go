package pid1

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"muster/agent/cmdline"
)

// links is what the kernel command line says of the network: the kernel's own ip= (its documentation,
// admin-guide/nfs/nfsroot), as dracut extends it with [IPv6] addresses, PXELINUX's BOOTIF=, and
// nameserver=.
type links struct {
	boot  net.HardwareAddr // BOOTIF: the link that this machine was booted over
	list  []link           // empty: DHCP everywhere
	names []netip.Addr     // name servers
}

// link is one ip= word.
type link struct {
	device  string // empty: BOOTIF's, else every one
	method  method
	address netip.Prefix // for static
	gateway netip.Addr   // may be none
	host    string       // may be empty
}

type method int

const (
	dhcp4 method = 1 << iota
	dhcp6
	auto6 // what routers announce (RFC 4862)
	static
	off
)

// automatic are the methods that need no address on the kernel command line.
const automatic = dhcp4 | dhcp6 | auto6

var methods = map[string]method{
	"dhcp": dhcp4, "on": dhcp4, "any": dhcp4, "dhcp6": dhcp6, "auto6": auto6, "both": dhcp4 | dhcp6, "none": off, "off": off,
}

func parseIP(line string) (links, error) {
	var all links
	for _, w := range cmdline.Parse(line) {
		var err error
		switch w.Name {
		case "BOOTIF":
			all.boot, err = parseBootIF(w.Value)
		case "nameserver":
			var a netip.Addr
			if a, err = parseAddr(w.Value); err == nil {
				all.names = append(all.names, a)
			}
		case "ip":
			var l link
			var names []netip.Addr
			if l, names, err = parseLink(w.Value); err == nil {
				all.list, all.names = append(all.list, l), append(all.names, names...)
			}
		}
		if err != nil {
			return links{}, fmt.Errorf("kernel command line: %s=%s: %v", w.Name, w.Value, err)
		}
	}
	return all, nil
}

// parseBootIF reads 01-52-54-00-12-34-56: the kind of hardware (RFC 1700), then the address. Some
// loaders leave the kind out, or write colons.
func parseBootIF(text string) (net.HardwareAddr, error) {
	b, err := hex.DecodeString(strings.NewReplacer("-", "", ":", "").Replace(text))
	if err != nil || len(b) != 6 && len(b) != 7 {
		return nil, fmt.Errorf("not a hardware address")
	}
	return net.HardwareAddr(b[len(b)-6:]), nil
}

// parseLink reads METHOD, DEVICE:METHOD, or
// ADDRESS:SERVER:GATEWAY:NETMASK:HOSTNAME:DEVICE:METHOD:DNS0:DNS1, whose end may be missing. The server
// is for NFS roots, and not needed here.
func parseLink(text string) (l link, names []netip.Addr, err error) {
	f := splitColons(text)
	if m, ok := methods[f[len(f)-1]]; ok && len(f) <= 2 {
		if len(f) == 2 {
			l.device = f[0]
		}
		l.method = m
		return l, nil, nil
	}
	for len(f) < 9 {
		f = append(f, "")
	}
	l.host, l.device = f[4], f[5]
	m, known := methods[f[6]]
	switch {
	case f[6] != "" && !known:
		return link{}, nil, fmt.Errorf("no method %q", f[6])
	case f[0] == "" && m&automatic == 0 && m != off:
		m = dhcp4 // the kernel's default
	case f[0] != "" && m&automatic == 0:
		m = static
	}
	l.method = m
	if m == static {
		if l.address, err = parsePrefix(f[0], f[3]); err != nil {
			return link{}, nil, err
		}
		if f[2] != "" {
			if l.gateway, err = parseAddr(f[2]); err != nil {
				return link{}, nil, err
			}
		}
	}
	for _, text := range f[7:9] {
		if text == "" {
			continue
		}
		a, err := parseAddr(text)
		if err != nil {
			return link{}, nil, err
		}
		names = append(names, a)
	}
	return l, names, nil
}

// splitColons splits at colons that are not in brackets.
func splitColons(text string) []string {
	fields, depth, from := []string{}, 0, 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '[':
			depth++
		case ']':
			depth--
		case ':':
			if depth == 0 {
				fields, from = append(fields, text[from:i]), i+1
			}
		}
	}
	return append(fields, text[from:])
}

func parseAddr(text string) (netip.Addr, error) {
	a, err := netip.ParseAddr(strings.Trim(text, "[]"))
	if err != nil {
		return netip.Addr{}, fmt.Errorf("%q is not an address", text)
	}
	return a, nil
}

// parsePrefix takes a netmask as 255.255.255.0 or as 24; without one it is the host alone.
func parsePrefix(address, mask string) (netip.Prefix, error) {
	a, err := parseAddr(address)
	if err != nil {
		return netip.Prefix{}, err
	}
	bits, err := strconv.Atoi(mask)
	if m, merr := netip.ParseAddr(mask); merr == nil && m.Is4() {
		b := m.As4()
		ones, size := net.IPMask(b[:]).Size()
		bits, err = ones, nil
		if size == 0 {
			bits = -1
		}
	}
	if mask == "" {
		bits, err = a.BitLen(), nil
	}
	p := netip.PrefixFrom(a, bits)
	if err != nil || !p.IsValid() {
		return netip.Prefix{}, fmt.Errorf("%q is not a netmask for %s", mask, address)
	}
	return p, nil
}
