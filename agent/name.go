package agent

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"muster/internal/wire"
)

const maxMACs = 32

// printable says whether s is visible ASCII: fit for a console and a log.
func printable(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) < 0
}

// hostname returns the machine's name, or "" where it has none yet.
func hostname(ask func() (string, error)) string {
	name, err := ask()
	if err != nil || name == "(none)" || strings.HasPrefix(name, "localhost") || wire.CheckName(name) != nil {
		return ""
	}
	return name
}

// findName takes the hostname for the node's name, unless that was configured.
func (a *Agent) findName() {
	if !a.named {
		a.name = hostname(a.hostname)
	}
}

// online waits for the network. The hostname may come with it.
func (a *Agent) online(ctx context.Context, failed error) error {
	if err := a.network(ctx, failed); err != nil {
		return err
	}
	a.findName()
	return nil
}

// hints reads what may help the head to find the node's record. sys is where sysfs is.
func hints(sys string) wire.Hints {
	uuid := strings.ToLower(sysText(sys, "class/dmi/id/product_uuid"))
	if !regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`).MatchString(uuid) || uniform(uuid) {
		uuid = ""
	}
	serial := sysText(sys, "class/dmi/id/product_serial")
	if len(serial) > wire.MaxName || strings.Trim(serial, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_./:+# ") != "" {
		serial = ""
	}
	return wire.Hints{MACs: macs(sys), UUID: uuid, Serial: serial}
}

// macs returns the addresses of the links that have hardware behind them, as sysfs orders them.
func macs(sys string) []string {
	links, _ := filepath.Glob(filepath.Join(sys, "class/net/*"))
	var found []string
	for _, link := range links {
		if _, err := os.Stat(filepath.Join(link, "device")); err != nil {
			continue // a bridge, a bond, loopback
		}
		mac := strings.ToLower(sysText(link, "address"))
		if regexp.MustCompile(`^[0-9a-f]{2}(:[0-9a-f]{2}){5,19}$`).MatchString(mac) && !uniform(mac) && len(found) < maxMACs {
			found = append(found, mac)
		}
	}
	return found
}

func sysText(dir, name string) string {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// uniform says whether s has one digit only: firmware that was never told its identity.
func uniform(s string) bool {
	digits := strings.NewReplacer("-", "", ":", "").Replace(s)
	return strings.Trim(digits, digits[:1]) == ""
}
