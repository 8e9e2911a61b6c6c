package signer

import (
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"net"
	"net/url"
	"time"

	"muster/internal/wire"
	"muster/signer/attest"
	"muster/signer/store"
)

// subject is a key that may be certified, and at which level.
type subject struct {
	key    string // fingerprint
	public crypto.PublicKey
	level  wire.Level
}

// attested is a key that was proven to be in its TPM.
func attested(at *attest.Attested) subject { return subject{at.Key(), at.PublicKey(), at.Level()} }

// subject is the key of a certificate on record, for its holder: proven once, at the level that it had then.
func (c *issued) subject() (subject, error) {
	cert, err := c.parsed()
	if err != nil {
		return subject{}, err
	}
	return subject{c.Key, cert.PublicKey, c.Level}, nil
}

func (c *issued) parsed() (*x509.Certificate, error) {
	cert, err := x509.ParseCertificate(c.DER)
	if err != nil {
		return nil, fmt.Errorf("certificate %s: %w", c.Serial, store.ErrDamaged)
	}
	return cert, nil
}

// certify makes the certificate of a node or host. The key has been proven, everything else comes from the record s
// and the cluster (I4); nothing comes from the CSR. A host's claims nothing of its key, and a host that has names or
// addresses may serve under them.
func (h *Head) certify(ca *authority, of subject, s *slot, now time.Time) (*issued, error) {
	tmpl := &x509.Certificate{
		Subject:               pkix.Name{CommonName: s.Node, Organization: []string{h.cluster.Name}},
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		DNSNames:              s.DNS,
		URIs:                  []*url.URL{h.spiffe(string(s.class()), s.Node)},
		CRLDistributionPoints: []string{h.crlURL(ca)},
	}
	if !s.Host {
		tmpl.Policies = of.level.Policies()
	} else if len(s.DNS)+len(s.IP) > 0 {
		tmpl.ExtKeyUsage = append(tmpl.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		if _, ok := of.public.(*rsa.PublicKey); ok { // NSS takes no RSA key of a server without
			tmpl.KeyUsage |= x509.KeyUsageKeyEncipherment
		}
	}
	for _, ip := range s.IP {
		tmpl.IPAddresses = append(tmpl.IPAddresses, net.ParseIP(ip))
	}
	der, err := ca.sign(tmpl, of.public, s.life(), now)
	if err != nil {
		return nil, err
	}
	return &issued{
		DER: der, Serial: serialHex(tmpl.SerialNumber), CA: ca.id(), Key: of.key, Level: of.level,
		Issued: now.UTC(), NotAfter: tmpl.NotAfter.UTC().Truncate(time.Second),
	}, nil
}

// certifyHead makes a certificate that may play the head.
func (h *Head) certifyHead(ca *authority, pub any, now time.Time) (*x509.Certificate, error) {
	hosts := *h.hosts.Load()
	names, addresses := splitHosts(hosts)
	tmpl := &x509.Certificate{
		Subject:               pkix.Name{CommonName: hosts[0], Organization: []string{h.cluster.Name}},
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		UnknownExtKeyUsage:    headEKU,
		URIs:                  []*url.URL{h.spiffe("head", hosts[0])},
		CRLDistributionPoints: []string{h.crlURL(ca)},
		DNSNames:              names,
		IPAddresses:           addresses,
	}
	der, err := ca.sign(tmpl, pub, headLife, now)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// splitHosts tells names and addresses apart, each in the order given.
func splitHosts(hosts []string) (names []string, addresses []net.IP) {
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			addresses = append(addresses, ip)
		} else {
			names = append(names, host)
		}
	}
	return names, addresses
}

func (h *Head) spiffe(class, name string) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: h.cluster.TrustDomain, Path: "/" + class + "/" + name}
}

func (h *Head) crlURL(ca *authority) string { return h.publicURL + crlPath(ca.id()) }

// enrolled is the answer for a certificate of the record.
func (h *Head) enrolled(c *issued, now time.Time) *wire.Enrolled {
	state := StateIssued
	if c.Activated {
		state = StateActive
	}
	return &wire.Enrolled{Cert: c.DER, Bundle: h.ring.Load().bundle(), State: string(state), Time: now.Unix()}
}

func newID() string {
	return hex.EncodeToString(newSerial().FillBytes(make([]byte, 16)))
}
