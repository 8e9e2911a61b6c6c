package signer

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"muster/internal/wire"
)

// Password opens the grant of an EST client, once. It is shown to the administrator, once, and refuses to be
// printed or logged otherwise; as JSON it goes over the admin socket only.
type Password string

func (Password) Format(f fmt.State, _ rune) { io.WriteString(f, "(password)") } // whatever the verb
func (Password) LogValue() slog.Value       { return slog.StringValue("(password)") }

// Credential is what the administrator brings to an EST client.
type Credential struct {
	Name     string   `json:"name"`
	Password Password `json:"password"`
}

// newPassword draws 130 random bits, as 26 letters and digits (RFC 4648, 6).
func newPassword() Password { return Password(rand.Text()) }

// hash is what the record keeps: bound to class and name, so that it opens nothing elsewhere. It is a fast hash and
// has no salt: nobody guesses 130 random bits, at whatever speed, and no two passwords are the same.
func (p Password) hash(of class, name string) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "muster-password-v1\n%s\n%s\n%s", of, name, string(p)))
	return hex.EncodeToString(sum[:])
}

// opens says whether p is the password of g, in a time that tells nothing of it.
func (g *grant) opens(of class, name string, p Password) bool {
	given, want := p.hash(of, name), ""
	if g != nil {
		want = g.Password
	}
	return subtle.ConstantTimeCompare([]byte(given), []byte(want)) == 1
}

// Wrong passwords in a minute. They bound the work and the noise of a stranger, not the guesses, of which no number
// helps. So a name takes many: fewer would let strangers keep its client out.
const (
	passwordWindow      = time.Minute
	passwordsPerAddress = 10
	passwordsPerSubnet  = 100 // of an IPv6 /64
	passwordsPerName    = 100
	passwordsTotal      = 4096
)

// passwordLimit counts wrong passwords.
type passwordLimit struct{ tally }

// try counts a password from remote (HOST:PORT) for name as a wrong one, unless there were too many; right takes
// that back.
func (l *passwordLimit) try(remote, name string, now time.Time) (right func(), no *refusal) {
	all := []quota{{name, passwordsPerName}}
	for _, p := range remoteSources(remote) {
		most := passwordsPerSubnet
		if p.IsSingleIP() {
			most = passwordsPerAddress
		}
		all = append(all, quota{p, most})
	}
	if !l.take(now, passwordWindow, passwordsTotal, all...) {
		return nil, refuse(wire.Busy, whyTooOften, "too many wrong passwords; wait a minute")
	}
	return func() { l.giveBack(all...) }, nil
}

// remoteSources are what a request from remote (HOST:PORT) counts for.
func remoteSources(remote string) []netip.Prefix {
	addr, err := netip.ParseAddrPort(remote)
	if err != nil {
		return nil
	}
	return sources(net.TCPAddrFromAddrPort(addr))
}

// quota is how often something may be counted in one window.
type quota struct {
	of   any
	most int
}

// tally counts what happens in one window, by what it comes from. It forgets all of it with the window, so that
// what it holds is bounded by what it let through.
type tally struct {
	mu    sync.Mutex
	since time.Time
	total int
	from  map[any]int
}

// take counts one more for each quota, unless that is too much for one of them, or for all together.
func (t *tally) take(now time.Time, window time.Duration, total int, each ...quota) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if age := now.Sub(t.since); age < 0 || age >= window {
		t.since, t.total, t.from = now, 0, map[any]int{}
	}
	if t.total >= total {
		return false
	}
	for _, q := range each {
		if t.from[q.of] >= q.most {
			return false
		}
	}
	t.total++
	for _, q := range each {
		t.from[q.of]++
	}
	return true
}

// giveBack takes back what take counted, if the window is still the same.
func (t *tally) giveBack(each ...quota) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.total = max(t.total-1, 0)
	for _, q := range each {
		if t.from[q.of]--; t.from[q.of] <= 0 {
			delete(t.from, q.of)
		}
	}
}
