package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"muster/signer"
)

// Statuses of a monitoring plugin (Monitoring Plugins Development Guidelines, "Plugin Return Codes"). They are
// `certs list --check`'s alone.
const (
	checkOK = iota
	checkWarning
	checkCritical
	checkUnknown
)

var checkWords = [...]string{"OK", "WARNING", "CRITICAL", "UNKNOWN"}

// A node renews with a third of its life left, 30 days of 90, so that less than 21 says that something has
// kept it from that for days.
const (
	warnBefore = 21 * 24 * time.Hour
	critBefore = 7 * 24 * time.Hour
)

// thresholds are how long before their end certificates are worth a word.
type thresholds struct{ warning, critical time.Duration }

// check is `certs list --check`: one line, performance data after a bar, and the worst status.
// Whatever keeps it from judging is unknown, so that no usage error is taken for a verdict.
func (e *env) check(ctx context.Context, which choice, limits thresholds) error {
	if limits.critical > limits.warning {
		return e.verdict(checkUnknown, fmt.Sprintf("--critical %s is more than --expiring %s",
			(*window)(&limits.critical), (*window)(&limits.warning)))
	}
	views, damaged, err := e.records(ctx, signer.ListRequest{IDs: which.ids, Selector: which.selector, Whole: true})
	if err != nil {
		return e.verdict(checkUnknown, err.Error())
	}
	status, says, data := judge(views, limits, time.Now())
	if damaged != nil {
		status, says = checkCritical, damaged.Error()+"; "+says
	}
	return e.verdict(status, says+" | "+data)
}

// verdict prints the line; the status goes to the shell without another word.
func (e *env) verdict(status int, says string) error {
	fmt.Fprintf(e.out, "CERTS %s: %s\n", checkWords[status], says)
	return silent(status)
}

// silent is an exit status that needs no message.
type silent int

func (s silent) Error() string { return fmt.Sprintf("status %d", int(s)) }

// judge looks at the certificates that nodes should be able to use and renew: not at revoked ones. Those of
// disabled nodes end as their administrator means them to, who is warned before that, and no more after it.
func judge(all []signer.NodeView, limits thresholds, now time.Time) (status int, says, data string) {
	var over, ended, critical, warning, unrenewed, unnamed []signer.NodeView
	var first *signer.NodeView
	n := 0
	for _, v := range inOrder(all) {
		left, disabled := v.Expires.Sub(now), v.State == signer.StateDisabled
		if v.Expires.IsZero() || v.State == signer.StateRevoked || disabled && (v.Ended || left <= 0) {
			continue
		}
		n++
		if first == nil || v.Expires.Before(first.Expires) {
			first = &v
		}
		switch {
		case disabled:
			if left < limits.warning {
				unrenewed = append(unrenewed, v)
			}
			continue
		case v.Ended:
			ended = append(ended, v)
			continue
		case left <= 0:
			over = append(over, v)
			continue
		case left < limits.critical:
			critical = append(critical, v)
		case left < limits.warning:
			warning = append(warning, v)
		}
		if !servesItsName(v) {
			unnamed = append(unnamed, v)
		}
	}
	var parts []string
	for _, found := range []struct {
		nodes  []signer.NodeView
		status int
		what   string
	}{
		{ended, checkCritical, "ended with their CA: "},
		{over, checkCritical, "expired: "},
		{critical, checkCritical, "less than " + (*window)(&limits.critical).String() + " left: "},
		{warning, checkWarning, "less than " + (*window)(&limits.warning).String() + " left: "},
		{unrenewed, checkWarning, "disabled, so not renewed, and less than " + (*window)(&limits.warning).String() + " left: "},
		{unnamed, checkWarning, "DNS names without the node's own: "},
	} {
		if len(found.nodes) > 0 {
			status = max(status, found.status)
			parts = append(parts, found.what+foldNodes(found.nodes))
		}
	}
	data = fmt.Sprintf("certs=%d over=%d critical=%d warning=%d unnamed=%d", n, len(over)+len(ended), len(critical), len(warning)+len(unrenewed), len(unnamed))
	if first == nil {
		return checkOK, "no certificates", data
	}
	days := func(d time.Duration) float64 { return math.Floor(d.Hours()/24*100) / 100 }
	left := days(first.Expires.Sub(now))
	parts = append(parts, fmt.Sprintf("certificates of %s, the first to end that of %s, %.0f days from now", nodes(n), first.Node, math.Floor(left)))
	return status, strings.Join(parts, "; "), fmt.Sprintf("%s days=%.2f;%g:;%g:", data, left, days(limits.warning), days(limits.critical))
}

// servesItsName says whether whoever goes by the DNS names of a node's certificate finds that node: where there are any, or
// the certificate may serve, the node's name must be among them, alone or with a domain after it.
func servesItsName(v signer.NodeView) bool {
	block, _ := pem.Decode([]byte(v.Cert))
	if block == nil {
		return true
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil || len(cert.DNSNames) == 0 && !slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageServerAuth) {
		return true
	}
	return slices.ContainsFunc(cert.DNSNames, func(name string) bool {
		name, node := strings.ToLower(name), strings.ToLower(v.Node)
		return name == node || strings.HasPrefix(name, node+".")
	})
}

// expiring are the nodes whose certificate is over or has less than within left. A revoked one is at its end
// already.
func expiring(nodes []signer.NodeView, within time.Duration, now time.Time) []signer.NodeView {
	return slices.DeleteFunc(nodes, func(v signer.NodeView) bool {
		return v.Expires.IsZero() || v.State == signer.StateRevoked || v.Expires.Sub(now) >= within
	})
}
