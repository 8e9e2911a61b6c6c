package pid1

import (
	"net"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestParseIP(t *testing.T) {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	mac := net.HardwareAddr{0x52, 0x54, 0, 0x12, 0x34, 0x56}
	for line, want := range map[string]links{
		"quiet":                        {},
		"ip=dhcp":                      {list: []link{{method: dhcp4}}},
		"ip=on":                        {list: []link{{method: dhcp4}}},
		"ip=both":                      {list: []link{{method: dhcp4 | dhcp6}}},
		"ip=off":                       {list: []link{{method: off}}},
		"ip=eth0:dhcp6 ip=eth1:auto6":  {list: []link{{device: "eth0", method: dhcp6}, {device: "eth1", method: auto6}}},
		"ip=:::::eth0:dhcp":            {list: []link{{device: "eth0", method: dhcp4}}},
		"ip=::::n7:eth0":               {list: []link{{device: "eth0", host: "n7", method: dhcp4}}},
		"BOOTIF=01-52-54-00-12-34-56":  {boot: mac},
		"BOOTIF=52:54:00:12:34:56":     {boot: mac},
		"nameserver=10.0.0.1":          {names: []netip.Addr{addr("10.0.0.1")}},
		"ip=10.0.0.7:::255.255.0.0":    {list: []link{{method: static, address: prefix("10.0.0.7/16")}}},
		"ip=10.0.0.7":                  {list: []link{{method: static, address: prefix("10.0.0.7/32")}}},
		"ip=10.0.0.7::10.0.0.1:24:n7:": {list: []link{{method: static, address: prefix("10.0.0.7/24"), gateway: addr("10.0.0.1"), host: "n7"}}},
		"ip=10.0.0.7:10.0.0.2:10.0.0.1:24:n7:eth0:none:10.0.0.3:10.0.0.4": {
			list:  []link{{device: "eth0", method: static, address: prefix("10.0.0.7/24"), gateway: addr("10.0.0.1"), host: "n7"}},
			names: []netip.Addr{addr("10.0.0.3"), addr("10.0.0.4")},
		},
		"ip=[2001:db8::7]::[2001:db8::1]:64::eth0:none": {
			list: []link{{device: "eth0", method: static, address: prefix("2001:db8::7/64"), gateway: addr("2001:db8::1")}},
		},
	} {
		if got, err := parseIP(line); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s\n got %+v, %v\nwant %+v", line, got, err, want)
		}
	}
	for _, bad := range []string{
		"ip=10.0.0.x", "ip=10.0.0.7:::33", "ip=10.0.0.7:::255.0.255.0", "ip=10.0.0.7::gw:24", "ip=::::n7:eth0:bootp6",
		"ip=10.0.0.7:::24::eth0:none:dns", "BOOTIF=eth0", "BOOTIF=01-52-54", "nameserver=dns.example",
	} {
		if got, err := parseIP("quiet " + bad); err == nil || !strings.Contains(err.Error(), bad) || !reflect.DeepEqual(got, links{}) {
			t.Errorf("%s: %+v, %v", bad, got, err)
		}
	}
}

func TestWanted(t *testing.T) {
	eth := func(name string, last byte) *netlink.LinkAttrs {
		return &netlink.LinkAttrs{Name: name, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, last}}
	}
	eth0, eth1 := eth("eth0", 0), eth("eth1", 1)
	for line, want := range map[string][2]bool{
		"":                                      {true, true},
		"BOOTIF=02-00-00-00-00-01":              {false, true},
		"ip=dhcp":                               {true, true},
		"ip=off":                                {false, false},
		"ip=eth0:dhcp":                          {true, false},
		"ip=eth0:off ip=dhcp":                   {false, true},
		"ip=dhcp BOOTIF=02-00-00-00-00-00":      {true, false},
		"ip=eth1:dhcp BOOTIF=02-00-00-00-00-00": {false, true},
	} {
		ls, err := parseIP(line)
		if err != nil {
			t.Fatal(err)
		}
		_, a := ls.wanted(eth0)
		_, b := ls.wanted(eth1)
		if got := [2]bool{a, b}; got != want {
			t.Errorf("%q: %v, not %v", line, got, want)
		}
	}
}

// FuzzIP: whatever the line says, no panic, and on an error nothing else.
func FuzzIP(f *testing.F) {
	for _, s := range []string{"ip=dhcp", "ip=10.0.0.7::10.0.0.1:24:n7:eth0:none:10.0.0.3", "ip=[2001:db8::7]:::64", "ip=[[:]:]", "BOOTIF=01-52-54-00-12-34-56", "nameserver=::1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		got, err := parseIP(line)
		if err != nil && !reflect.DeepEqual(got, links{}) {
			t.Errorf("%q: %+v beside %v", line, got, err)
		}
		for _, l := range got.list {
			if l.method == static && !l.address.IsValid() {
				t.Errorf("%q: static without an address", line)
			}
		}
	})
}
