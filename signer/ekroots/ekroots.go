// Package ekroots decides what an EK's certificate proves.
//
// It holds one invariant: [Dir.Check] is nil only for an EK whose very key a certificate names, from which a chain of
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

// Bounds on the work that one Check does. A maker's chain is three or four certificates long.
const (
	maxDepth  = 6  // certificates in a chain
	maxChecks = 10 // signatures
	maxFile   = 1 << 20
)

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
	stamp   string // of what was read
	issuers []*ekcert.Certificate
	roots   map[*ekcert.Certificate]bool
}

// In returns the directory at path, which need not be there. report is told, at each reading, of what cannot be read; the
// rest counts all the same.
func In(path string, report func(error)) *Dir { return &Dir{path: path, report: report} }

// Path is where it is.
func (d *Dir) Path() string { return d.path }

// Roots is how many there are.
func (d *Dir) Roots() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.read()
	return len(d.roots)
}

func (d *Dir) rootless() error {
	if len(d.roots) == 0 {
		return fmt.Errorf("no root is in %s", d.path)
	}
	return nil
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

// Check says whether one of certs, DER, is a good certificate of the EK key at now. Its error is for the administrator;
// what it quotes of certificates is bounded and fit for a terminal.
func (d *Dir) Check(certs [][]byte, key crypto.PublicKey, now time.Time) error {
	if len(certs) == 0 {
		return errors.New("it sent no certificate of its EK")
	}
	d.mu.Lock()
	d.read()
	pool, roots, rootless := d.issuers, d.roots, d.rootless()
	d.mu.Unlock()
	if rootless != nil {
		return rootless
	}
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return err
	}
	fingerprint := sha256.Sum256(spki)
	var leaves []*ekcert.Certificate
	var errs []error
	sent := slices.Clip(pool)
	for _, der := range certs {
		c, err := ekcert.Parse(der)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("a certificate that it sent cannot be read: %v", err))
		case c.Fingerprint == fingerprint:
			leaves = append(leaves, c)
		default:
			sent = append(sent, c)
		}
	}
	if len(leaves) == 0 {
		return oneLine(append(errs, errors.New("no certificate that it sent is of its EK")))
	}
	search := &search{pool: sent, roots: roots, now: now, checks: maxChecks}
	for _, leaf := range leaves {
		err := checkLeaf(leaf, now)
		if err == nil {
			if err = search.up([]*ekcert.Certificate{leaf}); err == nil {
				return nil
			}
		}
		errs = append(errs, err)
	}
	return oneLine(errs)
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

// checkIssuer are the rules for a certificate that others are signed by; below is how many CAs are between it and
// the EK's.
func checkIssuer(c *ekcert.Certificate, below int, now time.Time) error {
	name := "the certificate of its issuer " + issuerName(c.Subject)
	switch {
	case !c.IsCA || !c.MaySign:
		return fmt.Errorf("%s may not sign others", name)
	case c.PathLen >= 0 && below > c.PathLen:
		return fmt.Errorf("%s allows %d CAs below it, and there are %d", name, c.PathLen, below)
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

// search looks for a chain, depth first.
type search struct {
	pool   []*ekcert.Certificate
	roots  map[*ekcert.Certificate]bool
	now    time.Time
	checks int // signatures that it may still verify
}

// up goes on from a chain whose last certificate is not vouched for yet. Its error is about the issuer that came closest.
func (s *search) up(chain []*ekcert.Certificate) error {
	last := chain[len(chain)-1]
	closest := fmt.Errorf("its issuer %s is not known", issuerName(last.Issuer))
	if len(chain) == maxDepth {
		return errors.New("its chain is too long")
	}
	for _, issuer := range s.pool {
		if !bytes.Equal(issuer.Subject, last.Issuer) || slices.ContainsFunc(chain, func(c *ekcert.Certificate) bool { return bytes.Equal(c.Raw, issuer.Raw) }) {
			continue
		}
		if err := checkIssuer(issuer, len(chain)-1, s.now); err != nil {
			closest = err
			continue
		}
		if s.checks == 0 {
			return errors.New("too many certificates have the name of its issuer")
		}
		s.checks--
		if err := last.SignedBy(issuer); err != nil {
			closest = fmt.Errorf("by its issuer %s: %v", issuerName(last.Issuer), err)
			continue
		}
		if s.roots[issuer] {
			return nil
		}
		err := s.up(append(slices.Clip(chain), issuer))
		if err == nil {
			return nil
		}
		closest = err
	}
	return closest
}
