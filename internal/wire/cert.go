package wire

import (
	"crypto/x509"
	"encoding/asn1"
)

// Muster's arc is 2.25.1959598272. Its last number is the first 32 bits of SHA-256("muster"), whose
// top bit is clear, not a whole 128-bit UUID as ITU-T X.667 would have it: crypto/x509 refuses to
// parse a certificate whose extended key usage has an arc over 31 bits, and so would every Go
// program that meets ours.
var (
	// HeadEKU marks the certificates that may play the head, beside serverAuth.
	HeadEKU = asn1.ObjectIdentifier{2, 25, 1959598272, 1}

	// PolicyTOFU, PolicyVendor and PolicyPinned are the certificate policies for the levels.
	PolicyTOFU   = oid(2, 25, 1959598272, 2, 1)
	PolicyVendor = oid(2, 25, 1959598272, 2, 2)
	PolicyPinned = oid(2, 25, 1959598272, 2, 3)

	// The TCG's tcg-cap-verifiedTPMResidency and tcg-cap-verifiedTPMFixed (TCG OID Registry, 3):
	// the key is in a TPM, and may not leave it. Only at the levels vendor and pinned.
	PolicyTPMResidency = oid(2, 23, 133, 11, 1, 1)
	PolicyTPMFixed     = oid(2, 23, 133, 11, 1, 2)
)

// Policies returns the certificate policies of a node certificate at level l.
func (l Level) Policies() []x509.OID {
	switch l {
	case Pinned:
		return []x509.OID{PolicyPinned, PolicyTPMResidency, PolicyTPMFixed}
	case Vendor:
		return []x509.OID{PolicyVendor, PolicyTPMResidency, PolicyTPMFixed}
	}
	return []x509.OID{PolicyTOFU}
}

func oid(arcs ...uint64) x509.OID {
	o, err := x509.OIDFromInts(arcs)
	if err != nil {
		panic("wire: " + err.Error())
	}
	return o
}
