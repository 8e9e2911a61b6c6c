package signer

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"net"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"muster/internal/standin"
	"muster/internal/template"
	"muster/internal/wire"
)

func TestEnrol(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	s.enable("n0", pinned(k.ekHash()))
	got := s.enrol(k, "n0")
	if got.State != string(StateIssued) || got.Time != noon.Unix() || len(got.Chain) != 0 {
		t.Errorf("got state %q, time %d, chain %d", got.State, got.Time, len(got.Chain))
	}
	block, rest := pem.Decode([]byte(got.Bundle))
	if block == nil || !bytes.Equal(block.Bytes, s.ca().cert.Raw) || len(rest) != 0 {
		t.Error("the bundle is not the CA's certificate alone")
	}
	cert := certificate(t, got.Cert)
	if use(s.Head, cert) != "" || s.record("n0").state(noon) != StateActive {
		t.Error("the first use does not make it active")
	}
	if again := s.enrol(k, "n0"); again.State != string(StateActive) || !bytes.Equal(again.Cert, got.Cert) {
		t.Error("the same key does not get the same certificate again")
	}
}

// TestEnrolWithEachEK: every kind of EK that a TPM may have can be challenged.
func TestEnrolWithEachEK(t *testing.T) {
	for _, ek := range template.EKs() {
		t.Run(ek.Name, func(t *testing.T) {
			s, k := newSite(t), newChip(t, ek).nodeKey()
			s.enable("n0")
			s.enrol(k, "n0")
		})
	}
}

// TestCertificateFields checks a certificate field by field.
func TestCertificateFields(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	s.enable("n0", pinned(k.ekHash()), func(r *EnableRequest) { r.DNS, r.IP = []string{"n0.hpc"}, []string{"10.0.0.7"} })
	c := certificate(t, s.enrol(k, "n0").Cert)

	equal(t, "subject", c.Subject.String(), "CN=n0,O=Muster")
	equal(t, "issuer", hex.EncodeToString(c.RawIssuer), hex.EncodeToString(s.ca().cert.RawSubject))
	equal(t, "version", c.Version, 3)
	equal(t, "key usage", c.KeyUsage, x509.KeyUsageDigitalSignature)
	equal(t, "extended key usages", len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage), 1)
	equal(t, "extended key usage", c.ExtKeyUsage[0], x509.ExtKeyUsageClientAuth)
	equal(t, "CA", c.IsCA, false)
	equal(t, "basic constraints", c.BasicConstraintsValid, true)
	equal(t, "URIs", len(c.URIs), 1)
	equal(t, "URI", c.URIs[0].String(), "spiffe://hpc.example/node/n0")
	equal(t, "DNS names", slices.Equal(c.DNSNames, []string{"n0.hpc"}), true)
	equal(t, "addresses", len(c.IPAddresses) == 1 && c.IPAddresses[0].String() == "10.0.0.7", true)
	equal(t, "CRL", slices.Equal(c.CRLDistributionPoints, []string{"http://head:8080/crl/" + s.ca().id() + ".crl"}), true)
	equal(t, "authority key identifier", hex.EncodeToString(c.AuthorityKeyId), hex.EncodeToString(s.ca().cert.SubjectKeyId))
	equal(t, "not before", c.NotBefore, noon.Add(-time.Hour).Truncate(time.Second))
	equal(t, "not after", c.NotAfter, noon.Add(90*24*time.Hour).Truncate(time.Second))
	equal(t, "not after on record", s.record("n0").Cert.NotAfter, c.NotAfter)
	equal(t, "the key", k.public.(*ecdsa.PublicKey).Equal(c.PublicKey), true)
	ski, err := keyID(k.public)
	equal(t, "subject key identifier", hex.EncodeToString(c.SubjectKeyId), hex.EncodeToString(ski))
	equal(t, "error", err, nil)
	// Nothing but these extensions, and critical only what RFC 5280 has so.
	critical := map[string]bool{
		"2.5.29.15": true, "2.5.29.37": false, "2.5.29.19": true, "2.5.29.14": false, "2.5.29.35": false,
		"2.5.29.17": false, "2.5.29.32": false, "2.5.29.31": false,
	}
	equal(t, "extensions", len(c.Extensions), len(critical))
	for _, e := range c.Extensions {
		want, known := critical[e.Id.String()]
		if !known || e.Critical != want {
			t.Errorf("extension %v, critical %v", e.Id, e.Critical)
		}
	}
	if err := c.CheckSignatureFrom(s.ca().cert); err != nil {
		t.Error(err)
	}
}

func equal[T comparable](t tb, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// TestNothingOfTheCSRButItsKey: I4.
func TestNothingOfTheCSRButItsKey(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	k.csr = greedyCSR(t, k)
	s.enable("n0")
	c := certificate(t, s.enrol(k, "n0").Cert)
	if c.Subject.CommonName != "n0" || len(c.DNSNames)+len(c.IPAddresses)+len(c.EmailAddresses) != 0 || c.IsCA || len(c.URIs) != 1 {
		t.Errorf("the CSR got its wish: %s %v %v", c.Subject, c.DNSNames, c.IsCA)
	}
}

// greedyCSR asks for another name, other SANs and to be a CA.
func greedyCSR(t testing.TB, signer crypto.Signer) []byte {
	t.Helper()
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:  pkix.Name{CommonName: "root", Organization: []string{"system:masters"}},
		DNSNames: []string{"head"}, IPAddresses: []net.IP{net.IPv4(10, 0, 0, 1)}, EmailAddresses: []string{"root@head"},
		URIs: []*url.URL{{Scheme: "spiffe", Host: "muster", Path: "/node/n99"}},
		ExtraExtensions: []pkix.Extension{
			{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xFF}},
			{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Value: []byte{0x30, 0}},
		},
	}, signer)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

// TestSerials: 128 random bits, never twice.
func TestSerials(t *testing.T) {
	seen, bits := map[string]bool{}, 0
	for range 1000 {
		n := newSerial()
		if n.Sign() <= 0 || n.BitLen() > 128 || seen[n.String()] {
			t.Fatalf("serial %x", n)
		}
		seen[n.String()], bits = true, max(bits, n.BitLen())
	}
	if bits != 128 {
		t.Errorf("the longest of 1000 serials has %d bits", bits)
	}
	s, k := newSite(t), aChip(t).nodeKey()
	s.enable("n0")
	c := certificate(t, s.enrol(k, "n0").Cert)
	if c.SerialNumber.Sign() <= 0 || c.SerialNumber.BitLen() > 128 || s.record("n0").Cert.Serial != serialHex(c.SerialNumber) {
		t.Errorf("serial %x, on record %s", c.SerialNumber, s.record("n0").Cert.Serial)
	}
}

// TestUsualLeafFitsInNV: with 48 bytes of header and 8 of checksum a record stays within 768 bytes, which the
// smallest chips write at once.
func TestUsualLeafFitsInNV(t *testing.T) {
	s := newSite(t)
	s.cluster.Name, s.cluster.TrustDomain, s.publicURL = "hpc1", "hpc1.example.org", "http://head1.hpc1.example.org:8080"
	for _, name := range []string{"n0", "gpu01", "node0001", "compute-0142"} {
		k := aChip(t).nodeKey()
		s.enable(name, pinned(k.ekHash())) // with the longest policies
		n := len(s.enrol(k, name).Cert)
		if n > 704 {
			t.Errorf("%s: the leaf has %d bytes", name, n)
		}
		t.Logf("%s: %d bytes", name, n)
	}
}

// TestLifeEndsWithTheCA: never past the CA's end, and after it nothing is signed.
func TestLifeEndsWithTheCA(t *testing.T) {
	s, end := newSite(t), 48*time.Hour
	s.clock.move(s.ca().cert.NotAfter.Add(-end).Sub(noon))
	s.enable("n[0-1]", func(r *EnableRequest) { r.For = 2 * end })
	if c := certificate(t, s.enrol(aChip(t).nodeKey(), "n0").Cert); !c.NotAfter.Equal(s.ca().cert.NotAfter) {
		t.Errorf("not after: %v, the CA's is %v", c.NotAfter, s.ca().cert.NotAfter)
	}
	s.clock.move(end - time.Minute)
	answer := s.answered(aChip(t).nodeKey(), "n1")
	s.clock.move(2 * time.Minute)
	refusedWith(t, s.post(wire.PathEnroll, answer), wire.Busy)
	equal(t, "reason", s.reason("n1"), whySigning)
}

// policies are the levels' and the TCG's that a certificate carries.
func policies(c *x509.Certificate) (level []wire.Level, tcg int) {
	for _, p := range c.Policies {
		switch {
		case p.Equal(wire.PolicyTOFU):
			level = append(level, wire.TOFU)
		case p.Equal(wire.PolicyVendor):
			level = append(level, wire.Vendor)
		case p.Equal(wire.PolicyPinned):
			level = append(level, wire.Pinned)
		case p.Equal(wire.PolicyTPMResidency), p.Equal(wire.PolicyTPMFixed):
			tcg++
		}
	}
	return level, tcg
}

// TestLevels: only where the administrator recorded the EK does the certificate say that its key is
// in a TPM.
func TestLevels(t *testing.T) {
	for _, test := range []struct {
		level wire.Level
		tcg   int
	}{{wire.TOFU, 0}, {wire.Pinned, 2}} {
		s, k := newSite(t), aChip(t).nodeKey()
		if test.level == wire.Pinned {
			s.enable("n0", pinned(k.ekHash()))
		} else {
			s.enable("n0")
		}
		c := certificate(t, s.enrol(k, "n0").Cert)
		level, tcg := policies(c)
		if !slices.Equal(level, []wire.Level{test.level}) || tcg != test.tcg || len(c.Policies) != 1+test.tcg {
			t.Errorf("%s: levels %v, %d TCG policies of %d", test.level, level, tcg, len(c.Policies))
		}
		if got := s.record("n0").Cert.Level; got != test.level {
			t.Errorf("on record: %s, want %s", got, test.level)
		}
	}
}

// TestLevelRises: an EK that is recorded after the fact makes the next grant's certificate say so, for the
// same key; the one before lives until then.
func TestLevelRises(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	s.enable("n0")
	old := certificate(t, s.enrol(k, "n0").Cert)
	equal(t, "first use", use(s.Head, old), "")
	s.enable("n0", pinned(k.ekHash()))
	next := s.enrol(k, "n0").Cert
	if level, tcg := policies(certificate(t, next)); !slices.Equal(level, []wire.Level{wire.Pinned}) || tcg != 2 {
		t.Errorf("level %v, %d TCG policies", level, tcg)
	}
	if !bytes.Equal(s.enrol(k, "n0").Cert, next) {
		t.Error("the retry gets another certificate")
	}
	equal(t, "the old one, before", use(s.Head, old), "")
	equal(t, "the new one", use(s.Head, certificate(t, next)), "")
	equal(t, "the old one, after", use(s.Head, old), wire.NotEnabled)
	s.enable("n0")
	if !bytes.Equal(s.enrol(k, "n0").Cert, next) {
		t.Error("a grant was used up to make the same again")
	}
}

func aStandin(t *testing.T) *standin.TPM {
	t.Helper()
	soft, err := standin.New(template.EKs()[0])
	if err != nil {
		t.Fatal(err)
	}
	return soft
}

// TestSoftwareEK: at tofu software passes for a TPM, which is why tofu certificates do not speak of one;
// where the EK is on record it gets nothing, and takes nothing from the node.
func TestSoftwareEK(t *testing.T) {
	s, soft := newSite(t), aStandin(t)
	s.enable("n0")
	if _, tcg := policies(certificate(t, s.enrol(soft, "n0").Cert)); tcg != 0 {
		t.Error("a software EK's certificate says that the key is in a TPM")
	}
	k := aChip(t).nodeKey()
	s.enable("n1", pinned(k.ekHash()))
	refusedWith(t, s.post(wire.PathChallenge, aStandin(t).ChallengeRequest("n1")), wire.NotEnabled)
	equal(t, "reason", s.reason("n1"), whyOtherTPM)
	s.enrol(k, "n1")
	// Without an EK on record nobody reaches pinned, the administrator is told so.
	if err := s.tryEnable("n2", atLevel(wire.Pinned)); err == nil {
		t.Error("enabled at pinned without an EK")
	}
}

// TestBelowTheLevel: a grant that asks for more than tofu is not used up, nor met, by an unknown EK.
func TestBelowTheLevel(t *testing.T) {
	s := newSite(t)
	s.enable("n0")
	rec := s.record("n0")
	rec.Grant.Level = wire.Pinned
	s.putRecord(rec)
	k := aChip(t).nodeKey()
	refusedWith(t, s.post(wire.PathChallenge, k.ChallengeRequest("n0")), wire.NotEnabled)
	equal(t, "reason", s.reason("n0"), whyLevel)
	s.enable("n0", pinned(k.ekHash()))
	s.enrol(k, "n0")
}

// TestLevelRaisedBetweenTheLegs: the record counts as it is when the certificate is made.
func TestLevelRaisedBetweenTheLegs(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	s.enable("n0")
	answer := s.answered(k, "n0")
	rec := s.record("n0")
	rec.Grant.Level = wire.Pinned
	s.putRecord(rec)
	refusedWith(t, s.post(wire.PathEnroll, answer), wire.NotEnabled)
	equal(t, "reason", s.reason("n0"), whyLevel)
}

// TestForeignEK: somebody else's EK, sent before or after one's own, lends neither name nor level: the
// challenge goes to one EK, and all else follows from that one.
func TestForeignEK(t *testing.T) {
	s, victim, thief := newSite(t), aChip(t).nodeKey(), aChip(t).nodeKey()
	s.enable("n0", pinned(victim.ekHash()))
	s.enable("n1")
	theirs, own := wire.EK{Pub: tpm2.Marshal(victim.ek.area)}, wire.EK{Pub: tpm2.Marshal(thief.ek.area)}
	for name, eks := range map[string][]wire.EK{"before": {theirs, own}, "after": {own, theirs}} {
		for _, node := range []string{"n0", "n1", "n2", ""} {
			req := thief.ChallengeRequest(node)
			req.EKs = eks
			c := decoded[wire.Challenge](t, s.post(wire.PathChallenge, req))
			if c.EK != victim.ekHash() || c.Slot != "n0" {
				t.Errorf("%s, as %q: challenge for slot %s, EK %s", name, node, c.Slot, c.EK)
			}
			if secret, err := thief.activate(c.IDObject, c.EncSecret); err == nil {
				t.Errorf("%s, as %q: activated to %x", name, node, secret)
			}
		}
	}
	// On its own name, with its own EK alone, the thief is a node like any other: at tofu.
	level, tcg := policies(certificate(t, s.enrol(thief, "n1").Cert))
	if !slices.Equal(level, []wire.Level{wire.TOFU}) || tcg != 0 {
		t.Errorf("level %v, %d TCG policies", level, tcg)
	}
	s.enrol(victim, "n0")
}

// TestNameOfTheEK: a node whose EK is on record is who the record says, whatever it calls itself.
func TestNameOfTheEK(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	s.enable("n0", pinned(k.ekHash()))
	s.enable("n1")
	for _, claimed := range []string{"n1", "", "localhost", "n0"} {
		if c := certificate(t, s.enrol(k, claimed).Cert); c.Subject.CommonName != "n0" {
			t.Errorf("as %q it became %s", claimed, c.Subject.CommonName)
		}
	}
	if s.record("n1").EK != "" {
		t.Error("n1 was bound")
	}
}
