package inventory

import (
	"fmt"
	"net/netip"
	"strings"
)

// parseHosts reads hosts(5). The name of a node is the first on its line, or the short form of that
// where it stands there too; all names go to DNS. The lines of one name are one node. Loopback,
// multicast and what else is no machine's address is read over.
func parseHosts(data []byte) ([]Entry, *Error) {
	var entries []Entry
	known := map[string]int{}
	n := 0
	for line := range strings.Lines(string(data)) {
		n++
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		address, err := netip.ParseAddr(words[0])
		if err != nil {
			return nil, &Error{Line: n, Field: IP, Msg: fmt.Sprintf("%.80q is not an IP address", words[0])}
		}
		if len(words) == 1 {
			return nil, &Error{Line: n, Field: Name, Msg: "is missing"}
		}
		if !ofMachine(address) || strings.HasPrefix(words[1], "ip6-") {
			continue
		}
		name := shortName(words[1:])
		i, ok := known[name]
		if !ok {
			i = len(entries)
			known[name] = i
			entries = append(entries, Entry{Line: n})
			if bad := entries[i].set(Name, []string{name}); bad != nil {
				return nil, bad
			}
		}
		e := &entries[i]
		first := e.Line
		e.Line = n // for errors
		if bad := e.set(IP, words[:1]); bad != nil {
			return nil, bad
		}
		if bad := e.set(DNS, words[1:]); bad != nil {
			return nil, bad
		}
		e.Line = first
	}
	return entries, nil
}

func ofMachine(a netip.Addr) bool {
	a = a.Unmap()
	return !a.IsLoopback() && !a.IsMulticast() && !a.IsUnspecified() && !a.IsLinkLocalUnicast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

func shortName(names []string) string {
	short, _, _ := strings.Cut(names[0], ".")
	for _, name := range names[1:] {
		if name == short {
			return name
		}
	}
	return names[0]
}
