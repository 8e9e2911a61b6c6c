package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-tpm/tpm2"

	"muster/internal/template"
	"muster/internal/wire"
)

// roleFloor is the argument that makes the bench the floor: a server that does what nobody can avoid
// and nothing else. That is a handshake, the check of the CSR, MakeCredential, and one signature over a
// certificate made beforehand but for key and serial. It keeps no record, checks no proof (an HMAC),
// knows no limits, and reads HTTP by hand.
const roleFloor = "floor"

// floor is the server's keys, and a certificate to make others of.
type floor struct {
	key  *ecdsa.PrivateKey
	cert tls.Certificate
	tbs  []byte // TBSCertificate
	pub  int    // where in it the key's point begins
	no   int    // and the serial number, of 16 bytes
	spki []byte // what stands before the point in a P-256 key's SPKI
	ek   tpm2.TPMTPublic
}

const pointSize = 65 // of P-256, uncompressed

// serveFloor serves until in ends.
func serveFloor(in io.Reader, out io.Writer) error {
	f, err := newFloor()
	if err != nil {
		return err
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{f.cert},
		ClientAuth: tls.RequestClientCert, SessionTicketsDisabled: true,
	})
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go f.serve(c)
		}
	}()
	fmt.Fprintln(out, l.Addr())
	io.Copy(io.Discard, in)
	return l.Close()
}

func newFloor() (*floor, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(bytes.Repeat([]byte{0x5A}, 16)),
		Subject:      pkix.Name{CommonName: "n000", Organization: []string{"bench"}},
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(90 * 24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs:         []*url.URL{{Scheme: "spiffe", Host: "bench", Path: "/node/n000"}},
		SubjectKeyId: make([]byte, 20), AuthorityKeyId: make([]byte, 20),
		Policies:              wire.TOFU.Policies(),
		CRLDistributionPoints: []string{"http://127.0.0.1:8080/crl/0123456789abcdef.crl"},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		return nil, err
	}
	return &floor{
		spki: bytes.TrimSuffix(cert.RawSubjectPublicKeyInfo, point), ek: template.EKs()[0].Public,
		key: key, cert: tls.Certificate{Certificate: [][]byte{der, der}, PrivateKey: key},
		tbs: cert.RawTBSCertificate,
		pub: bytes.Index(cert.RawTBSCertificate, point),
		no:  bytes.Index(cert.RawTBSCertificate, bytes.Repeat([]byte{0x5A}, 16)),
	}, nil
}

func (f *floor) serve(c net.Conn) {
	defer c.Close()
	in := bufio.NewReader(c)
	var key *ecdsa.PublicKey // of leg 1
	for {
		path, body, err := readRequest(in)
		if err != nil {
			return
		}
		var answer any = struct{}{}
		switch path {
		case wire.PathChallenge:
			answer, key, err = f.challenge(body)
		case wire.PathEnroll:
			answer, err = f.enrolled(key)
		}
		if err != nil {
			return
		}
		b := wire.Encode(answer)
		head := "HTTP/1.1 200 OK\r\nContent-Length: " + strconv.Itoa(len(b)) + "\r\n\r\n"
		if _, err := c.Write(append([]byte(head), b...)); err != nil {
			return
		}
	}
}

// readRequest reads a request's path and body, and trusts the client for the rest.
func readRequest(in *bufio.Reader) (path string, body []byte, err error) {
	length := 0
	for first := true; ; first = false {
		line, err := in.ReadString('\n')
		if err != nil {
			return "", nil, err
		}
		if first {
			path = strings.Fields(line)[1]
		}
		if n, ok := strings.CutPrefix(line, "Content-Length: "); ok {
			if length, err = strconv.Atoi(strings.TrimSpace(n)); err != nil {
				return "", nil, err
			}
		}
		if line == "\r\n" {
			break
		}
	}
	body = make([]byte, length)
	_, err = io.ReadFull(in, body)
	return path, body, err
}

// challenge is leg 1: the CSR's signature and MakeCredential.
func (f *floor) challenge(body []byte) (*wire.Challenge, *ecdsa.PublicKey, error) {
	var req wire.ChallengeRequest
	if err := json.Unmarshal(body, &req); err != nil {
		return nil, nil, err
	}
	csr, err := x509.ParseCertificateRequest(req.CSR)
	if err != nil {
		return nil, nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, nil, err
	}
	key, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || len(req.EKs) == 0 {
		return nil, nil, errors.New("not a stand-in's request")
	}
	ek, fingerprint, err := f.parseEK(req.EKs[0].Pub)
	if err != nil {
		return nil, nil, err
	}
	name := sha256.Sum256(req.Key)
	id, enc, err := tpm2.CreateCredential(rand.Reader, ek, append([]byte{0, byte(tpm2.TPMAlgSHA256)}, name[:]...), make([]byte, 32))
	return &wire.Challenge{
		Cluster: "bench", Grant: "grant", Slot: req.Node, Level: wire.TOFU, Exp: time.Now().Unix(), Epoch: "epoch",
		EK: hex.EncodeToString(fingerprint[:]), IDObject: id, EncSecret: enc,
	}, key, err
}

// parseEK takes the point from the end of the area, where it stands in two TPM2Bs of 32 bytes.
func (f *floor) parseEK(area []byte) (ek tpm2.LabeledEncapsulationKey, fingerprint [32]byte, err error) {
	if len(area) < 68 {
		return nil, fingerprint, errors.New("EK: cut short")
	}
	x, y := area[len(area)-66:len(area)-34], area[len(area)-32:]
	pub := f.ek
	pub.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: x}, Y: tpm2.TPM2BECCParameter{Buffer: y},
	})
	ek, err = tpm2.ImportEncapsulationKey(&pub)
	spki := append(append(append(bytes.Clone(f.spki), 4), x...), y...)
	return ek, sha256.Sum256(spki), err
}

// enrolled is leg 2: the certificate's signature.
func (f *floor) enrolled(key *ecdsa.PublicKey) (*wire.Enrolled, error) {
	if key == nil {
		return nil, errors.New("leg 2 without leg 1")
	}
	point, err := key.Bytes()
	if err != nil {
		return nil, err
	}
	tbs := bytes.Clone(f.tbs)
	copy(tbs[f.pub:f.pub+pointSize], point)
	rand.Read(tbs[f.no+1 : f.no+16]) // the first byte stays: the number's length is fixed
	digest := sha256.Sum256(tbs)
	sig, err := f.key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	der, err := asn1.Marshal(struct {
		TBS       asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{
		asn1.RawValue{FullBytes: tbs},
		pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}}, // ecdsa-with-SHA256
		asn1.BitString{Bytes: sig, BitLength: 8 * len(sig)},
	})
	return &wire.Enrolled{Cert: der, State: "issued"}, err
}

// floorServer is the floor, seen from the bench.
type floorServer struct {
	*child
	addr string
}

func startFloor(ctx context.Context) (*floorServer, error) {
	c, err := startChild(ctx, roleFloor)
	if err != nil {
		return nil, err
	}
	addr, err := c.out.ReadString('\n')
	if err != nil {
		c.stop()
		return nil, fmt.Errorf("%s: %w", roleFloor, err)
	}
	return &floorServer{c, strings.TrimSpace(addr)}, nil
}

func (f *floorServer) pid() int { return f.cmd.Process.Pid }
