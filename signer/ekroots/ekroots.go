// Package ekroots decides what an EK's certificate proves.
//
// It holds one invariant: [Look.Check] is nil only for an EK whose very key a certificate names, from which a chain of
// good signatures by certificate authorities leads to a self-signed certificate that the administrator put into the
// directory. Certificates that a node brings, and those in the directory that are not self-signed, may stand in
// between, and vouch for nothing by themselves.
//
// The rules are RFC 5280's (section 6.1), for the purpose tcg-kp-EKCertificate; package ekcert says which encodings are
// taken.
package ekroots

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"muster/internal/ekcert"
)

// Bounds on the work that one Look does. A maker's chain is three or four certificates long.
const (
	maxDepth  = 6  // certificates in a chain
	maxChecks = 16 // signatures
	maxFile   = 1 << 20
)

// lookEvery is how long a look at each file counts. A file that comes or goes changes the directory, which is looked at
// each time.
const lookEvery = time.Second

var (
	oidEKCertificate = asn1.ObjectIdentifier{2, 23, 133, 8, 1} // tcg-kp-EKCertificate
	oidAnyUsage      = asn1.ObjectIdentifier{2, 5, 29, 37, 0}
)

// Dir is a directory of certificates: PEM, of which a file may hold several, or DER. It is read again when a file in it
// has changed. Its methods may be called at once.
type Dir struct {
	path   string
	report func(error)

	mu      sync.Mutex
	changed time.Time // the directory, at the last look
	looked  time.Time // at each file
	stamp   string    // of what was read
	issuers []*ekcert.Certificate
	roots   map[*ekcert.Certificate]bool
}

// In returns the directory at path, which need not be there. report is told, at each reading, of what cannot be read; the
// rest counts all the same.
func In(path string, report func(error)) *Dir { return &Dir{path: path, report: report} }

// Path is where it is.
func (d *Dir) Path() string { return d.path }

// Roots is how many there are. Each call looks at each file: it is for the administrator, who has just put one there.
func (d *Dir) Roots() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.read()
	return len(d.roots)
}

// Look is the directory at one moment, to check the EKs of one claim with: all of them together cost no more signatures
// than maxChecks. It is for one goroutine.
type Look struct {
	path   string
	pool   []*ekcert.Certificate
	roots  map[*ekcert.Certificate]bool
	now    time.Time
	checks int // signatures that it may still verify
}

// Look looks at the directory at now.
func (d *Dir) Look(now time.Time) *Look {
	d.mu.Lock()
	defer d.mu.Unlock()
	var changed time.Time
	if info, err := os.Stat(d.path); err == nil {
		changed = info.ModTime()
	}
	if since := now.Sub(d.looked); since < 0 || since >= lookEvery || !changed.Equal(d.changed) {
		d.changed, d.looked = changed, now
		d.read()
	}
	return &Look{path: d.path, pool: d.issuers, roots: d.roots, now: now, checks: maxChecks}
}

// read takes the files in, unless they are those that it has.
func (d *Dir) read() {
	stamp, names, err := d.look()
	if err == nil && stamp == d.stamp {
		return
	}
	if err != nil && d.stamp == "" && d.roots != nil {
		return // as the last time
	}
	d.stamp, d.issuers, d.roots = stamp, nil, map[*ekcert.Certificate]bool{}
	if err != nil {
		d.report(err)
		return
	}
	for _, name := range names {
		certs, err := readFile(filepath.Join(d.path, name))
		if err != nil {
			d.report(fmt.Errorf("%s: %v", filepath.Join(d.path, name), err))
		}
		for _, c := range certs {
			d.issuers = append(d.issuers, c)
			if bytes.Equal(c.Subject, c.Issuer) && c.SignedBy(c) == nil {
				d.roots[c] = true
			}
		}
	}
}

// look names the files, and what tells them from those that were there before.
func (d *Dir) look() (stamp string, names []string, err error) {
	entries, err := os.ReadDir(d.path)
	if errors.Is(err, fs.ErrNotExist) {
		return "none", nil, nil
	}
	if err != nil {
		return "", nil, err
	}
	var b strings.Builder
	b.WriteString("some")
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		info, err := os.Stat(filepath.Join(d.path, e.Name())) // what a symbolic link leads to
		if err == nil && info.IsDir() {
			continue
		}
		names = append(names, e.Name())
		if err == nil {
			fmt.Fprintf(&b, "\n%q %d %d", e.Name(), info.Size(), info.ModTime().UnixNano())
		}
	}
	return b.String(), names, nil
}

// readFile returns the certificates that can be read, and why others cannot.
func readFile(path string) ([]*ekcert.Certificate, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, errors.New("not a file of certificates")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var certs []*ekcert.Certificate
	var errs []error
	add := func(der []byte) {
		c, err := ekcert.Parse(der)
		if err != nil {
			errs = append(errs, err)
			return
		}
		certs = append(certs, c)
	}
	block, rest := pem.Decode(b)
	if block == nil {
		add(b)
	}
	for ; block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			add(block.Bytes)
		}
	}
	return certs, errors.Join(errs...)
}

// Check says whether one of certs, DER, is a good certificate of the EK key. Its error is for the administrator; what it
// quotes of certificates is bounded and fit for a terminal.
func (l *Look) Check(certs [][]byte, key crypto.PublicKey) error {
	if len(certs) == 0 {
		return errors.New("it sent no certificate of its EK")
	}
	if len(l.roots) == 0 {
		return fmt.Errorf("no root is in %s", l.path)
	}
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return err
	}
	fingerprint := sha256.Sum256(spki)
	var leaves []*ekcert.Certificate
	var errs []error
	pool := slices.Clip(l.pool)
	for _, der := range certs {
		c, err := ekcert.Parse(der)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("a certificate that it sent cannot be read: %v", err))
		case c.Fingerprint == fingerprint:
			leaves = append(leaves, c)
		case !contains(pool, c):
			pool = append(pool, c)
		}
	}
	if len(leaves) == 0 {
		return oneLine(append(errs, errors.New("no certificate that it sent is of its EK")))
	}
	for _, leaf := range leaves {
		err := checkLeaf(leaf, l.now)
		if err == nil {
			if err = l.vouch(leaf, pool); err == nil {
				return nil
			}
		}
		errs = append(errs, err)
	}
	return oneLine(errs)
}

// contains says whether the same bytes are in list.
func contains(list []*ekcert.Certificate, one *ekcert.Certificate) bool {
	return slices.ContainsFunc(list, func(c *ekcert.Certificate) bool { return bytes.Equal(c.Raw, one.Raw) })
}

func oneLine(errs []error) error {
	var text []string
	for _, err := range errs {
		if !slices.Contains(text, err.Error()) {
			text = append(text, err.Error())
		}
	}
	return errors.New(strings.Join(text, "; "))
}

// checkLeaf are the rules for the certificate of the EK itself.
func checkLeaf(c *ekcert.Certificate, now time.Time) error {
	switch {
	case c.IsCA:
		return errors.New("the certificate of its EK is a CA's")
	case !has(c.ExtKeyUsage, oidEKCertificate):
		return errors.New("its certificate is not for an EK: extended key usage tcg-kp-EKCertificate is missing")
	}
	return checkAny(c, now, "the certificate of its EK")
}

// checkIssuer are the rules for a certificate that others are signed by, but for how many CAs may be below it.
func checkIssuer(c *ekcert.Certificate, now time.Time) error {
	name := "the certificate of its issuer " + issuerName(c.Subject)
	switch {
	case !c.IsCA || !c.MaySign:
		return fmt.Errorf("%s may not sign others", name)
	case c.ExtKeyUsage != nil && !has(c.ExtKeyUsage, oidEKCertificate) && !has(c.ExtKeyUsage, oidAnyUsage):
		return fmt.Errorf("%s is for something else than EKs", name)
	}
	return checkAny(c, now, name)
}

func checkAny(c *ekcert.Certificate, now time.Time, name string) error {
	switch {
	case len(c.Unknown) > 0:
		return fmt.Errorf("%s has the critical extension %v, which is unknown here", name, c.Unknown[0])
	case now.After(c.NotAfter):
		return fmt.Errorf("%s was over on %s", name, c.NotAfter.UTC().Format(time.DateOnly))
	case now.Before(c.NotBefore):
		return fmt.Errorf("%s begins on %s", name, c.NotBefore.UTC().Format(time.DateOnly))
	}
	return nil
}

func has(list []asn1.ObjectIdentifier, want asn1.ObjectIdentifier) bool {
	return slices.ContainsFunc(list, want.Equal)
}

// vouch looks for a chain from a root to leaf: up by the names alone, which cost nothing, then down by the signatures. So
// no key verifies one that does not itself lead to a root: a stranger's are never used, whatever he sends and however
// slow they are.
func (l *Look) vouch(leaf *ekcert.Certificate, pool []*ekcert.Certificate) error {
	above, err := l.above(leaf, pool)
	if err != nil {
		return err
	}
	var closest error
	for _, c := range above {
		if !l.roots[c] {
			continue
		}
		if closest = l.down([]*ekcert.Certificate{c}, above, leaf); closest == nil {
			return nil
		}
	}
	return closest
}

// above are the certificates of pool that may stand above leaf by names and rules. A root is among them; else the error
// is about what is missing.
func (l *Look) above(leaf *ekcert.Certificate, pool []*ekcert.Certificate) ([]*ekcert.Certificate, error) {
	var above []*ekcert.Certificate
	var closest error
	rooted := false
	level := []*ekcert.Certificate{leaf}
	for depth := 1; depth < maxDepth && len(level) > 0; depth++ {
		var next []*ekcert.Certificate
		for _, below := range level {
			known := false
			for _, c := range pool {
				if !bytes.Equal(c.Subject, below.Issuer) {
					continue
				}
				known = true
				if slices.Contains(above, c) {
					continue
				}
				if err := checkIssuer(c, l.now); err != nil {
					closest = err
					continue
				}
				rooted = rooted || l.roots[c]
				above, next = append(above, c), append(next, c)
			}
			if !known {
				closest = fmt.Errorf("its issuer %s is not known", issuerName(below.Issuer))
			}
		}
		level = next
	}
	switch {
	case rooted:
		return above, nil
	case closest != nil:
		return nil, closest
	}
	return nil, fmt.Errorf("its issuer %s leads to no root", issuerName(leaf.Issuer))
}

// down goes on from a chain, a root first, whose last certificate is vouched for. Its error is about the last that was
// looked at.
func (l *Look) down(chain, above []*ekcert.Certificate, leaf *ekcert.Certificate) error {
	issuer := chain[len(chain)-1]
	closest := fmt.Errorf("its issuer %s leads to no root", issuerName(leaf.Issuer))
	for _, c := range append([]*ekcert.Certificate{leaf}, above...) {
		if !bytes.Equal(c.Issuer, issuer.Subject) || l.roots[c] || slices.Contains(chain, c) || c != leaf && len(chain) == maxDepth-1 {
			continue
		}
		if l.checks == 0 {
			return errors.New("too many certificates have the name of its issuer")
		}
		l.checks--
		if err := c.SignedBy(issuer); err != nil {
			closest = fmt.Errorf("by its issuer %s: %v", issuerName(issuer.Subject), err)
			continue
		}
		var err error
		if c == leaf {
			err = checkLengths(chain)
		} else {
			err = l.down(append(slices.Clip(chain), c), above, leaf)
		}
		if err == nil {
			return nil
		}
		closest = err
	}
	return closest
}

// checkLengths compares each issuer of a chain, the root first, with how many CAs are between it and the EK.
func checkLengths(chain []*ekcert.Certificate) error {
	for i, c := range chain {
		if below := len(chain) - 1 - i; c.PathLen >= 0 && below > c.PathLen {
			return fmt.Errorf("the certificate of its issuer %s allows %d CAs below it, and there are %d", issuerName(c.Subject), c.PathLen, below)
		}
	}
	return nil
}
