package signer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"muster/internal/durable"
	"muster/signer/attest"
	"muster/signer/inventory"
	"muster/signer/store"
)

// Files of the state directory, beside the store.
const (
	caKeyFile  = "ca/" + firstCAKey
	firstCAKey = "ca.key" // of the CA that init makes; its successors' are named after their ids
	epochFile  = "epoch.key"
)

// Plan is what `muster init` asks for.
type Plan struct {
	Cluster     string     // name, in certificates' O; letters, digits, dot, dash, underscore
	TrustDomain string     // SPIFFE trust domain, fully qualified; empty: Cluster with .internal behind it
	Hosts       []string   // DNS names and IP addresses of the head
	Passphrase  Passphrase // for the CA's key; empty: it is not encrypted
	CA          *Imported  // made elsewhere; nil: one is made
}

// Made is what `muster init` made, for people and programs.
type Made struct {
	Cluster string `json:"cluster"`
	Pin     string `json:"pin"`  // "sha256:" + hex of the CA's SPKI
	Cert    string `json:"cert"` // PEM
}

// ErrPlan: what was asked for cannot be made.
var ErrPlan = errors.New("cannot make this cluster")

var clusterName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// Check fills in what p leaves open and reports ErrPlan.
func (p *Plan) Check() error {
	if !clusterName.MatchString(p.Cluster) {
		return fmt.Errorf("%w: cluster name %q is not of letters, digits, '.', '-', '_'", ErrPlan, p.Cluster)
	}
	if p.TrustDomain == "" {
		p.TrustDomain = trustDomain(p.Cluster)
	}
	if !strings.Contains(p.TrustDomain, ".") || !inventory.IsHostName(p.TrustDomain) || strings.ToLower(p.TrustDomain) != p.TrustDomain {
		return fmt.Errorf("%w: trust domain %q is not a fully qualified name in lower case, as hpc1.example.org", ErrPlan, p.TrustDomain)
	}
	if len(p.Hosts) == 0 {
		return fmt.Errorf("%w: no host name or address for the head", ErrPlan)
	}
	if len(p.Hosts[0]) > maxNodeName {
		return fmt.Errorf("%w: the first host, %q, is longer than the %d characters of a common name", ErrPlan, p.Hosts[0], maxNodeName)
	}
	for _, host := range p.Hosts {
		if net.ParseIP(host) == nil && (!inventory.IsHostName(host) || looksLikeIP(host)) {
			return fmt.Errorf("%w: host %q is neither a DNS name nor an IP address", ErrPlan, host)
		}
	}
	return nil
}

// looksLikeIP: no top-level domain is a number, so that 10.0.0.999 is a slip of the hand.
func looksLikeIP(host string) bool {
	last := host[strings.LastIndexByte(host, '.')+1:]
	return last != host && strings.Trim(last, "0123456789") == ""
}

// trustDomain is a fully qualified name, since RFC 5280, 4.2.1.6, wants one in a certificate's URI;
// internal is the top-level domain that is kept for private use.
func trustDomain(cluster string) string {
	name := strings.Trim(strings.ReplaceAll(strings.ToLower(cluster), "_", "-"), ".-")
	if !strings.Contains(name, ".") {
		name += ".internal"
	}
	return name
}

// Init makes a cluster in dir, whose store st is new and empty. Only the last step, the record of the
// cluster in the store, makes it one; before that, Init may simply be run again, and after it Init
// replaces nothing: store.ErrExists.
func Init(ctx context.Context, dir string, st store.Store, plan Plan, now time.Time) (*Made, error) {
	if err := plan.Check(); err != nil {
		return nil, err
	}
	if item, err := st.Get(ctx, keyCluster); err != nil || item.Revision != 0 {
		return nil, cmp.Or(err, fmt.Errorf("%s: %w", dir, store.ErrExists))
	}
	ca, err := plan.authority(now)
	if err != nil {
		return nil, err
	}
	ca.keyFile = firstCAKey
	if err := writeCA(dir, ca, plan.Passphrase); err != nil {
		return nil, err
	}
	epochs := attest.NewEpochs(now)
	if err := durable.WriteFile(filepath.Join(dir, epochFile), epochs.Marshal(), 0o600); err != nil {
		return nil, err
	}
	c := cluster{
		ID: newID(), Name: plan.Cluster, TrustDomain: plan.TrustDomain, Hosts: plan.Hosts, Made: now.UTC(),
	}
	puts := []store.Put{put(keyCluster, c), put(keyCAs, (&ring{members: []*authority{ca}}).record())}
	if plan.CA != nil {
		// It may have signed CRLs before. Their numbers were counted from 1, most likely, and never go down.
		puts = append(puts, put(prefixCRL+ca.id(), crlRecord{Number: now.Unix()}))
	}
	err = st.Commit(ctx, store.Tx{
		Guards: []store.Guard{{Key: keyCluster}},
		Puts:   puts,
		Events: []store.Event{event(now, "init", "", map[string]string{"cluster": c.ID, "pin": ca.pin()})},
	})
	if err != nil {
		return nil, err
	}
	return &Made{Cluster: plan.Cluster, Pin: ca.pin(), Cert: string(certificatePEM(ca.root().Raw))}, nil
}

func (p *Plan) authority(now time.Time) (*authority, error) {
	if p.CA != nil {
		return p.CA.authority, nil
	}
	return newAuthority(p.Cluster, now)
}

// stateDirs are the directories of the state directory.
var stateDirs = []struct {
	name string
	mode os.FileMode
}{{"ca", 0o700}, {"public", 0o755}}

func writeCA(dir string, ca *authority, passphrase Passphrase) error {
	cert := certificatePEM(ca.root().Raw)
	key, err := marshalKey(ca.key, passphrase)
	if err != nil {
		return err
	}
	for _, d := range stateDirs {
		if err := os.MkdirAll(filepath.Join(dir, d.name), d.mode); err != nil {
			return err
		}
	}
	for _, f := range []struct {
		name string
		data []byte
		mode os.FileMode
	}{{caKeyFile, key, 0o600}, {"public/ca.pem", cert, 0o644}} {
		if err := durable.WriteFile(filepath.Join(dir, f.name), f.data, f.mode); err != nil {
			return err
		}
	}
	return durable.SyncDir(dir)
}
