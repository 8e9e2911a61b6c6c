package agent

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"muster/internal/wire"
)

// imageCA is where a boot image says whom its node is to trust.
const imageCA = "/etc/muster/ca.pem"

// pin names a CA for good: SHA-256 of its SubjectPublicKeyInfo, never of a certificate, so that a CA
// may renew its own.
type pin [sha256.Size]byte

func (p pin) String() string { return "sha256:" + hex.EncodeToString(p[:]) }

func pinOf(c *x509.Certificate) pin { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }

// trust is which CAs the node believes, and nothing else does it believe.
type trust struct {
	pins  []pin
	certs []*x509.Certificate // CA certificates at hand without a head; a pin decides what they are worth
	from  string              // who says so, for messages
	nv    bool                // the pins come from NV alone
	tofu  bool                // nothing is pinned yet: the first head that answers decides, once
}

// The ways in which a head's certificate fails. Nothing is sent to such a head.
var (
	errMismatch = errors.New("its certificate does not chain to the pinned CA")
	errNotHead  = errors.New("its certificate is not a head's (serverAuth and Muster's own EKU)")
	errHost     = errors.New("its certificate is not for this host")
	errTime     = errors.New("its certificate is not valid at this time")
)

// resolveTrust decides whom to trust: what a person said, else the image's CA file, else the pin in
// NV, which alone serves tofu so that trust on first use happens once and not at each boot.
func (a *Agent) resolveTrust(nv []pin) (*trust, error) {
	t := &trust{}
	switch certs, err := readCertificates(a.path(imageCA)); {
	case a.ca.given() && !a.ca.tofu:
		t.from, t.pins = a.ca.from, slices.Clone(a.ca.pins)
		for _, file := range a.ca.files {
			more, err := readCertificates(file)
			if err != nil {
				return nil, badConfig("", "%v", err)
			}
			t.addFile(more)
		}
		t.certs = append(t.certs, certs...)
	case err == nil && !a.ca.tofu:
		t.from = a.path(imageCA)
		t.addFile(certs)
	case err != nil && !errors.Is(err, fs.ErrNotExist) && !a.ca.tofu:
		return nil, badConfig("copy it again from the head ('muster ca export')", "%v", err)
	case len(nv) > 0:
		t.from, t.nv, t.pins = "the TPM's NV", true, nv[:1]
	case a.ca.tofu:
		t.from, t.tofu = "tofu", true
	default:
		return nil, badConfig("add muster.ca=sha256:… to the kernel command line ('muster ca show' on the head prints it), or put the CA's certificate in "+imageCA,
			"no CA is known, so no head can be believed")
	}
	// What an earlier stage of this boot wrote helps to build chains, where a pin vouches for it.
	if earlier, err := readCertificates(a.path(fileCA)); err == nil {
		t.certs = append(t.certs, earlier...)
	}
	return t, nil
}

// addFile pins every CA of a file.
func (t *trust) addFile(certs []*x509.Certificate) {
	t.certs = append(t.certs, certs...)
	for _, c := range certs {
		if c.IsCA {
			t.pins = append(t.pins, pinOf(c))
		}
	}
}

// readCertificates reads a PEM file that holds one certificate at least, and nothing but CAs'.
func readCertificates(path string) ([]*x509.Certificate, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	certs, err := parseCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %v", path, err)
	}
	return certs, nil
}

func parseCertificates(text []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, errors.New("a certificate in it is damaged")
		}
		if c.IsCA && c.BasicConstraintsValid {
			certs = append(certs, c)
		}
	}
	if len(certs) == 0 {
		return nil, errors.New("no CA certificate (PEM) is in it")
	}
	return certs, nil
}

// anchors returns those CA certificates, of the ones sent and the ones at hand, whose key is pinned.
// A pin is a hash, so the certificate itself may come from anybody.
func (t *trust) anchors(sent []*x509.Certificate) []*x509.Certificate {
	var found []*x509.Certificate
	for _, c := range slices.Concat(t.certs, sent) {
		pinned := slices.Contains(t.pins, pinOf(c)) || t.tofu && selfSigned(c)
		if pinned && c.IsCA && c.BasicConstraintsValid {
			found = append(found, c)
		}
	}
	return found
}

// chains builds every chain from leaf to a pin. A cross-certificate among those sent links a pinned
// CA to its successor: it is an intermediate like any other.
func (t *trust) chains(leaf *x509.Certificate, sent []*x509.Certificate, at time.Time, usage x509.ExtKeyUsage) ([][]*x509.Certificate, error) {
	opts := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(),
		CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{usage},
	}
	for _, c := range t.anchors(sent) {
		opts.Roots.AddCert(c)
	}
	for _, c := range slices.Concat(t.certs, sent) {
		opts.Intermediates.AddCert(c)
	}
	return leaf.Verify(opts)
}

// verified is a head's certificate chain that passed every check.
type verified struct {
	at     time.Time           // the moment for which it was checked
	sent   []*x509.Certificate // what the head sent beside its leaf
	anchor *x509.Certificate   // the pinned CA that it chains to
	leaf   *x509.Certificate
}

// verifyServer checks a chain as it came in a handshake: to a pin, for host, at a moment.
func (t *trust) verifyServer(chain []*x509.Certificate, host string, at time.Time) (*verified, error) {
	if len(chain) == 0 {
		return nil, errMismatch
	}
	leaf, sent := chain[0], chain[1:]
	found, err := t.chains(leaf, sent, at, x509.ExtKeyUsageServerAuth)
	if err != nil {
		return nil, chainError(err)
	}
	if leaf.IsCA || !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) {
		return nil, errNotHead
	}
	if err := leaf.VerifyHostname(host); err != nil {
		return nil, fmt.Errorf("%w: %v", errHost, err)
	}
	return &verified{at: at, sent: sent, leaf: leaf, anchor: found[0][len(found[0])-1]}, nil
}

// verifyHead is verifyServer, and that the certificate is one for heads: no other certificate of the
// same CA, a node's with serverAuth say, can play the head.
func (t *trust) verifyHead(chain []*x509.Certificate, host string, at time.Time) (*verified, error) {
	v, err := t.verifyServer(chain, host, at)
	if err != nil {
		return nil, err
	}
	for _, eku := range v.leaf.UnknownExtKeyUsage {
		if eku.Equal(wire.HeadEKU) {
			return v, nil
		}
	}
	return nil, errNotHead
}

func chainError(err error) error {
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) {
		switch invalid.Reason {
		case x509.Expired:
			return fmt.Errorf("%w: %v", errTime, err)
		case x509.IncompatibleUsage:
			return errNotHead
		}
	}
	return fmt.Errorf("%w: %v", errMismatch, err)
}

// verifyNode checks a node's certificate: to a pin, for clients, at a moment.
func (t *trust) verifyNode(leaf *x509.Certificate, sent []*x509.Certificate, at time.Time) ([]*x509.Certificate, error) {
	found, err := t.chains(leaf, sent, at, x509.ExtKeyUsageClientAuth)
	if err != nil {
		return nil, err
	}
	if leaf.IsCA || !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) {
		return nil, errors.New("not a certificate for clients")
	}
	return found[0], nil
}

// roots returns what ca.pem is to hold: the self-signed CA certificates at hand whose key is pinned,
// or is linked to a pinned one by a chain of the certificates sent. Anchors come first.
func (t *trust) roots(sent []*x509.Certificate, at time.Time) []*x509.Certificate {
	anchors := t.anchors(sent)
	trusted := map[pin]bool{}
	for _, c := range anchors {
		trusted[pinOf(c)] = true
	}
	for _, c := range sent {
		if _, err := t.chains(c, sent, at, x509.ExtKeyUsageAny); err == nil && c.IsCA {
			trusted[pinOf(c)] = true
		}
	}
	var found []*x509.Certificate
	for _, c := range slices.Concat(anchors, t.certs, sent) {
		if trusted[pinOf(c)] && selfSigned(c) && !slices.ContainsFunc(found, c.Equal) {
			found = append(found, c)
		}
	}
	return found
}

// stillTrusted leaves out of roots what the head no longer names: a CA that has ended, or is over, and that the
// kernel command line pins all the same. A head takes trust away, and never adds any.
func stillTrusted(roots []*x509.Certificate, named []string) []*x509.Certificate {
	kept := slices.DeleteFunc(slices.Clone(roots), func(c *x509.Certificate) bool { return !slices.Contains(named, pinOf(c).String()) })
	if len(kept) == 0 {
		return roots
	}
	return kept
}

// links returns what goes along with leaf, so that who trusts one CA of a rotation alone can verify it: the
// intermediates and cross-certificates that lead from its issuer to others, among those at hand.
func links(leaf *x509.Certificate, at []*x509.Certificate) []*x509.Certificate {
	var found []*x509.Certificate
	seen, names := map[string]bool{string(leaf.RawIssuer): true}, [][]byte{leaf.RawIssuer}
	for ; len(names) > 0; names = names[1:] {
		for _, c := range at {
			if !c.IsCA || selfSigned(c) || !bytes.Equal(c.RawSubject, names[0]) || slices.ContainsFunc(found, c.Equal) {
				continue
			}
			if seen[string(c.RawIssuer)] && len(found) > 0 {
				continue // it leads back
			}
			found = append(found, c)
			seen[string(c.RawIssuer)] = true
			names = append(names, c.RawIssuer)
		}
	}
	return found
}

// pinFor returns the pin that belongs with a node certificate in NV: of the root that issued it,
// which after a rotation is not the one that the kernel command line still pins.
func pinFor(chain, roots []*x509.Certificate) pin {
	for _, c := range chain[1:] {
		if slices.ContainsFunc(roots, func(r *x509.Certificate) bool { return pinOf(r) == pinOf(c) }) {
			return pinOf(c)
		}
	}
	return pinOf(chain[len(chain)-1])
}

// settle ends trust on first use: from now on only the CA of v is believed.
func (t *trust) settle(v *verified) {
	if t.tofu {
		t.pins, t.tofu = []pin{pinOf(v.anchor)}, false
	}
}

func selfSigned(c *x509.Certificate) bool {
	return bytes.Equal(c.RawIssuer, c.RawSubject) && c.CheckSignatureFrom(c) == nil
}

// remedy says where a wrong pin is to be mended: nothing else counts than where it came from.
func (t *trust) remedy() string {
	switch {
	case strings.HasPrefix(t.from, "--"):
		return "the right pin belongs behind " + t.from
	case strings.HasPrefix(t.from, cmdlineSource):
		return "the right pin belongs behind muster.ca= on the kernel command line"
	}
	return "the right one belongs into that file, which counts before the kernel command line; a boot image is made anew, with its CA"
}

// headError is the outcome of a head that may not be believed.
func (t *trust) headError(host string, err error) error {
	o := &Outcome{Status: StatusConfig, cause: err, Message: Clean(fmt.Sprintf("%s: %v", host, err)), Hint: "muster.head= must name a head of Muster"}
	switch {
	case errors.Is(err, errMismatch) && t.nv:
		o.Message = fmt.Sprintf("ca_mismatch: %s: %v (pinned in the TPM's NV: %v)", host, errMismatch, t.pins[0])
		o.Hint = "if the CA was replaced on purpose: muster-agent forget, then run again"
	case errors.Is(err, errMismatch):
		o.Message = fmt.Sprintf("ca_mismatch: %s: %v (%d pinned by %s)", host, errMismatch, len(t.pins), t.from)
		o.Hint = "compare with 'muster ca show' on the head; " + t.remedy()
	case errors.Is(err, errHost):
		o.Hint = "use in muster.head= one of the names that were given to 'muster init --host'"
	case errors.Is(err, errTime):
		o.Hint = "set the clocks of node and head"
	}
	return o
}
