package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	"muster/signer"
)

func TestJudge(t *testing.T) {
	const day = 24 * time.Hour
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	left := func(node string, state signer.State, d time.Duration) signer.NodeView {
		return signer.NodeView{Node: node, State: state, Expires: now.Add(d)}
	}
	limits := thresholds{21 * day, 7 * day}
	dead := left("n4", signer.StateOpen, -day)
	dead.Ended = true
	for name, c := range map[string]struct {
		nodes  []signer.NodeView
		status int
		says   string // begins with
		data   string
	}{
		"nothing":    {nil, checkOK, "no certificates", "certs=0 over=0 critical=0 warning=0 unnamed=0"},
		"no cert":    {[]signer.NodeView{{Node: "n0", State: signer.StateOpen}}, checkOK, "no certificates", "certs=0 over=0 critical=0 warning=0 unnamed=0"},
		"well":       {[]signer.NodeView{left("n0", signer.StateActive, 21*day)}, checkOK, "certificates of 1 node, the first to end that of n0, 21 days from now", "certs=1 over=0 critical=0 warning=0 unnamed=0 days=21.00;21:;7:"},
		"warning":    {[]signer.NodeView{left("n0", signer.StateActive, 21*day-1), left("n1", signer.StateIssued, 90*day)}, checkWarning, "less than 21d left: n0; ", "certs=2 over=0 critical=0 warning=1 unnamed=0 days=20.99;21:;7:"},
		"critical":   {[]signer.NodeView{left("n0", signer.StateActive, 8*day), left("n1", signer.StateActive, 7*day-1)}, checkCritical, "less than 7d left: n1; less than 21d left: n0; ", "certs=2 over=0 critical=1 warning=1 unnamed=0 days=6.99;21:;7:"},
		"expired":    {[]signer.NodeView{left("n2", signer.StateExpired, 0), left("n10", signer.StateOpen, -day), left("n1", signer.StateActive, 90*day)}, checkCritical, "expired: n[2,10]; ", "certs=3 over=2 critical=0 warning=0 unnamed=0 days=-1.00;21:;7:"},
		"disabled":   {[]signer.NodeView{left("n0", signer.StateDisabled, day), left("n1", signer.StateDisabled, 22*day), left("n2", signer.StateDisabled, -day)}, checkWarning, "disabled, so not renewed, and less than 21d left: n0; certificates of 2 nodes", "certs=2 over=0 critical=0 warning=1 unnamed=0 days=1.00;21:;7:"},
		"ended":      {[]signer.NodeView{dead, left("n1", signer.StateActive, 90*day)}, checkCritical, "ended with their CA: n4; ", "certs=2 over=1 critical=0 warning=0 unnamed=0 days=-1.00;21:;7:"},
		"left alone": {[]signer.NodeView{left("n0", signer.StateDisabled, -day), left("n1", signer.StateRevoked, day)}, checkOK, "no certificates", "certs=0 over=0 critical=0 warning=0 unnamed=0"},
	} {
		status, says, data := judge(c.nodes, limits, now)
		if status != c.status || !strings.HasPrefix(says, c.says) || data != c.data {
			t.Errorf("%s: %d %s | %s", name, status, says, data)
		}
	}
}

func TestServesItsName(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	server, client := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	for _, c := range []struct {
		dns  []string
		eku  []x509.ExtKeyUsage
		want bool
	}{
		{nil, client, true},
		{nil, server, false},
		{[]string{"n7"}, server, true},
		{[]string{"www.example.org", "N7.cluster.example"}, client, true},
		{[]string{"www.example.org"}, client, false},
		{[]string{"n70", "xn7", "n7-ib.cluster.example"}, server, false},
	} {
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: c.dns, ExtKeyUsage: c.eku}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
		if got := servesItsName(signer.NodeView{Node: "n7", Cert: text}); got != c.want {
			t.Errorf("%v %v: %v", c.dns, c.eku, got)
		}
	}
}
