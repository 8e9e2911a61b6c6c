package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"

	"muster/internal/standin"
	"muster/internal/template"
	"muster/internal/wire"
)

// node is one that was enabled: its keys, made before anything is timed, and its certificate.
type node struct {
	name string
	tpm  *standin.TPM
	from netip.Addr
	leg1 []byte
	cert []byte // DER, once enrolled
}

// source is a loopback address for each i: the head limits the connections of one address.
func source(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{127, byte(1 + i>>16), byte(i >> 8), byte(i)})
}

// enabled makes n nodes, which the head lets enrol.
func (b *bench) enabled(ctx context.Context, h *head, n int) ([]*node, error) {
	nodes, err := b.made(n)
	if err != nil {
		return nil, err
	}
	return nodes, h.enable(ctx, fmt.Sprintf("n[%d-%d]", b.crowd-n, b.crowd-1))
}

// made makes n nodes.
func (b *bench) made(n int) ([]*node, error) {
	nodes := make([]*node, n)
	var group errgroup.Group
	group.SetLimit(runtime.NumCPU())
	for i := range nodes {
		number := b.crowd + i
		group.Go(func() (err error) {
			nodes[i], err = newNode(number)
			return err
		})
	}
	b.crowd += n
	return nodes, group.Wait()
}

func newNode(number int) (*node, error) {
	tpm, err := standin.New(template.EKs()[0])
	if err != nil {
		return nil, err
	}
	n := &node{name: fmt.Sprintf("n%d", number), tpm: tpm, from: source(number)}
	n.leg1 = wire.Encode(tpm.ChallengeRequest(n.name))
	return n, nil
}

// enrol is both legs on one fresh connection. kx nil is Go's default key exchange.
func (n *node) enrol(addr string, kx []tls.CurveID) error {
	c, err := dial(addr, n.from, nil, kx)
	if err != nil {
		return err
	}
	defer c.close()
	b, err := c.do("POST", wire.PathChallenge, n.leg1)
	if err != nil {
		return err
	}
	var challenge wire.Challenge
	if err := json.Unmarshal(b, &challenge); err != nil {
		return err
	}
	answer, err := n.tpm.Answer(n.name, challenge)
	if err != nil {
		return err
	}
	if b, err = c.do("POST", wire.PathEnroll, wire.Encode(answer)); err != nil {
		return err
	}
	var enrolled wire.Enrolled
	if err := json.Unmarshal(b, &enrolled); err != nil {
		return err
	}
	n.cert = enrolled.Cert
	return nil
}

// self is a node that comes back: its own record, over mTLS on a fresh connection.
func (n *node) self(addr string) error {
	cert := &tls.Certificate{Certificate: [][]byte{n.cert}, PrivateKey: n.tpm.Signer()}
	c, err := dial(addr, n.from, cert, nil)
	if err != nil {
		return err
	}
	defer c.close()
	_, err = c.do("GET", wire.PathSelf, nil)
	return err
}

// conn is a client's connection. net/http would cost the generator as much as the rest of it.
type conn struct {
	tls *tls.Conn
	in  *bufio.Reader
}

func dial(addr string, from netip.Addr, cert *tls.Certificate, kx []tls.CurveID) (*conn, error) {
	d := net.Dialer{Timeout: patience, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
	raw, err := d.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	raw.SetDeadline(time.Now().Add(patience))
	cfg := &tls.Config{
		MinVersion:       tls.VersionTLS13,
		CurvePreferences: kx,
		// What a node does to verify the head costs the node, and would only slow the generator.
		InsecureSkipVerify: true,
	}
	if cert != nil {
		cfg.Certificates = []tls.Certificate{*cert}
	}
	c := &conn{tls: tls.Client(raw, cfg)}
	c.in = bufio.NewReader(c.tls)
	if err := c.tls.Handshake(); err != nil {
		raw.Close()
		return nil, fmt.Errorf("handshake: %w", err)
	}
	return c, nil
}

func (c *conn) close() { c.tls.Close() }

// do sends one request and returns the body of a 200.
func (c *conn) do(method, path string, body []byte) ([]byte, error) {
	head := method + " " + path + " HTTP/1.1\r\nHost: 127.0.0.1\r\n"
	if body != nil {
		head += fmt.Sprintf("Content-Type: application/json\r\nContent-Length: %d\r\n", len(body))
	}
	if _, err := c.tls.Write(append([]byte(head+"\r\n"), body...)); err != nil {
		return nil, err
	}
	rsp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	defer rsp.Body.Close()
	b, err := io.ReadAll(rsp.Body)
	if err == nil && rsp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", path, rsp.Status, b)
	}
	return b, err
}
