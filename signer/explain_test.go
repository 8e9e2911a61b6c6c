package signer

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"muster/internal/testtpm"
	"muster/internal/wire"
)

// whyRow is a case that a node, n0, can be in. of is what it is a case of: States, reasons and wire's
// Troubles. In sentence and hint stand EK for the node's, OTHER for a stranger's, SERIAL, DAY and TIME.
type whyRow struct {
	name           string
	of             []any
	do             func(s *site, k, stranger *key)
	sentence, hint string
}

// whyLater are constants that nothing leads to yet. Who gives them a meaning gives them a row.
var whyLater = []any{}

// saw is for what a test cannot bring about at the head: the sighting is what a request would leave.
func saw(why reason, detail string, proven bool) func(*site, *key, *key) {
	return func(s *site, k, _ *key) {
		s.enable("n0")
		s.seen.note("n0", true, sighting{At: s.clock.now(), Addr: "192.0.2.1", Reason: why, Detail: detail, EK: k.ekHash(), Proven: proven})
	}
}

func says(code wire.Trouble) func(*site, *key, *key) {
	return func(s *site, k, _ *key) {
		s.enable("n0")
		equal(s.t, "use", use(s.Head, certificate(s.t, s.enrol(k, "n0").Cert)), "")
		decoded[wire.Reported](s.t, s.reportFrom("192.0.2.1", reportOf("n0", code)))
	}
}

const (
	isWell   = "n0 is well: certificate SERIAL… in use since DAY, good until DAY, level tofu"
	reported = isWell + "; a machine that calls itself n0 reported from 192.0.2.1 at TIME that "
	enable   = "muster certs enable -i n0"
	doctor   = "on the node: muster-agent doctor"
)

var whyRows = []whyRow{
	{"never seen", nil, func(s *site, _, _ *key) {}, "n0 was never seen and never enabled", "muster certs list shows the names that are; if it is right: " + enable},
	{"asks, and the inventory does not have it", []any{whyUnknown}, func(s *site, k, _ *key) {
		s.imports("name\nn1\n")
		s.post(wire.PathChallenge, k.ChallengeRequest("n0"))
	}, "n0 asked once from 192.0.2.1 at TIME, and is not known", "muster certs enable --create -i n0"},
	{"asks by EST, and nobody enabled it", []any{whyPassword}, func(s *site, _, _ *key) {
		s.simple("n0", "wrong", "-")
	}, "n0 asked once from 192.0.2.1 at TIME, and is not known", "for an EST client: muster certs enable --password -i n0"},
	{"asks, and nobody enabled it", []any{whyUnknown}, func(s *site, k, _ *key) {
		s.post(wire.PathChallenge, k.ChallengeRequest("n0"))
	}, "n0 asked once from 192.0.2.1 at TIME, and is not known", enable},
	{"TPM off, and nobody enabled it", []any{wire.NoTPM}, func(s *site, _, _ *key) {
		decoded[wire.Reported](s.t, s.reportFrom("192.0.2.1", reportOf("n0", wire.NoTPM)))
	},
		"n0 was never enabled; a machine that calls itself n0 reported from 192.0.2.1 at TIME that it has no usable TPM: its firmware shows none",
		"muster certs enable -i n0; in the node's firmware, switch the TPM on (Intel PTT, AMD fTPM or the discrete TPM), or fit one"},
	{"TPM off", []any{wire.NoTPM, StateOpen}, func(s *site, _, _ *key) {
		s.enable("n0")
		decoded[wire.Reported](s.t, s.reportFrom("192.0.2.1", reportOf("n0", wire.NoTPM)))
	},
		"n0 may enrol until DAY, and has not asked since this head started; a machine that calls itself n0 reported from 192.0.2.1 at TIME that it has no usable TPM: its firmware shows none",
		"boot the node; on it: muster-agent doctor; in the node's firmware, switch the TPM on (Intel PTT, AMD fTPM or the discrete TPM), or fit one"},
	{"may enrol", []any{StateOpen}, func(s *site, _, _ *key) { s.enable("n0") },
		"n0 may enrol until DAY, and has not asked since this head started",
		"boot the node; on it: muster-agent doctor"},
	{"may enrol, and asked before", []any{StateOpen}, func(s *site, k, _ *key) {
		s.post(wire.PathChallenge, k.ChallengeRequest("n0"))
		s.enable("n0")
		s.post(wire.PathChallenge, k.ChallengeRequest("n0"))
	},
		"n0 may enrol until DAY, and has not asked since; it last did from 192.0.2.1 at TIME",
		"boot the node; on it: muster-agent doctor"},
	{"window over", []any{StateDisabled}, func(s *site, _, _ *key) { s.enable("n0"); s.clock.move(time.Hour) }, "the window of n0 was over on DAY, and it had not asked", enable},
	{"window over, and it asks", []any{whyWindowOver, StateDisabled}, func(s *site, k, _ *key) {
		s.enable("n0")
		s.clock.move(time.Hour)
		s.post(wire.PathChallenge, k.ChallengeRequest("n0"))
	}, "n0 asked once from 192.0.2.1 at TIME, and was refused: the window of n0 was over at DAY", enable},
	{"disabled", []any{StateDisabled}, func(s *site, _, _ *key) { s.enable("n0"); s.disable("n0") }, "n0 was disabled", enable},
	{"disabled, with a certificate", []any{StateDisabled}, func(s *site, k, _ *key) {
		s.active(k, "n0")
		s.disable("n0")
	}, "n0 was disabled; its certificate SERIAL… is good until DAY, and is not renewed", enable},
	{"disabled, with a certificate, and it asks", []any{whyDisabled}, func(s *site, k, _ *key) {
		cert := s.active(k, "n0")
		s.disable("n0")
		renewed(s.Head, cert)
	}, "n0 asked once from 192.0.2.1 at TIME, and was refused: n0 is disabled; its certificate SERIAL… is good until DAY, and is not renewed", enable},
	{"disabled, and it asks", []any{whyDisabled}, func(s *site, k, _ *key) {
		s.enable("n0")
		s.disable("n0")
		s.post(wire.PathChallenge, k.ChallengeRequest("n0"))
	}, "n0 asked once from 192.0.2.1 at TIME, and was refused: n0 is disabled", enable},
	{"not enabled", []any{StateDisabled}, func(s *site, _, _ *key) { s.putRecord(&slot{Node: "n0"}) }, "n0 is not enabled", enable},
	{"not enabled, and it asks", []any{whyNotEnabled}, func(s *site, k, _ *key) {
		s.putRecord(&slot{Node: "n0"})
		s.post(wire.PathChallenge, k.ChallengeRequest("n0"))
	}, "n0 asked once from 192.0.2.1 at TIME, and was refused: n0 has no open grant", enable},
	{"issued, never used", []any{StateIssued}, func(s *site, k, _ *key) { s.enable("n0"); s.enrol(k, "n0") }, "n0 got certificate SERIAL… on DAY and has not used it yet", doctor},
	{"active", []any{StateActive}, func(s *site, k, _ *key) {
		s.enable("n0")
		use(s.Head, certificate(s.t, s.enrol(k, "n0").Cert))
	}, isWell, ""},
	{"expired", []any{StateExpired}, func(s *site, k, _ *key) { s.enable("n0"); s.enrol(k, "n0"); s.clock.move(nodeLife) },
		"the certificate of n0 was over on DAY; it gets another when it asks with the same TPM and key",
		"boot the node; on it: muster-agent run"},
	{"expired, and it asks", []any{whyExpired, StateExpired}, func(s *site, k, _ *key) {
		s.enable("n0")
		cert := certificate(s.t, s.enrol(k, "n0").Cert)
		s.clock.move(nodeLife)
		renewed(s.Head, cert)
	},
		"n0 showed its certificate from 192.0.2.1 at TIME, which is over; an agent gets another by itself",
		"on the node: muster-agent run"},
	{"expired, and it proves itself", []any{StateIssued}, func(s *site, k, _ *key) {
		s.enable("n0")
		s.enrol(k, "n0")
		s.clock.move(nodeLife)
		s.enrol(k, "n0")
	}, "n0 got certificate SERIAL… on DAY and has not used it yet", doctor},
	{"another key again", []any{whyTooSoon}, func(s *site, k, _ *key) {
		cert := s.active(k, "n0")
		s.rekeyed(cert, k.chip.nodeKey())
		s.rekeyed(cert, k.chip.nodeKey())
	},
		"n0 asked from 192.0.2.1 at TIME for another key, and was refused: n0 has changed its key at DAY, and may again at DAY",
		"on the node: muster-agent renew, for the key that it has"},
	{"revoked", []any{StateRevoked, whyRevoked}, func(s *site, k, _ *key) {
		s.enable("n0")
		s.enrol(k, "n0")
		s.revoke(RevokeRequest{IDs: []string{"n0"}})
		s.post(wire.PathChallenge, k.ChallengeRequest("n0"))
	}, "n0 is revoked", "to let it enrol again, with another key: muster certs enable --again -i n0"},
	{"a revoked key", []any{whyKeyBarred}, func(s *site, k, _ *key) {
		s.enable("n0")
		s.enrol(k, "n0")
		s.revoke(RevokeRequest{IDs: []string{"n0"}})
		s.enable("n0", func(r *EnableRequest) { r.Again = true })
		s.post(wire.PathEnroll, s.answered(k, "n0"))
	},
		"n0 asked from 192.0.2.1 at TIME with a key that was revoked; an agent makes another one by itself",
		"on the node: muster-agent run"},
	{"TPM changed", []any{whyOtherTPM}, func(s *site, k, stranger *key) {
		s.enable("n0")
		use(s.Head, certificate(s.t, s.enrol(k, "n0").Cert))
		s.post(wire.PathChallenge, stranger.ChallengeRequest("n0"))
	},
		"another TPM (EK OTHER) asked once from 192.0.2.1 at TIME, to be n0, which is bound to the EK EK",
		"if its board was changed: muster certs replace -i n0"},
	{"a board that was changed", []any{whyReplaced}, func(s *site, k, _ *key) {
		s.enable("n0")
		s.enrol(k, "n0")
		s.must(s.replaceBoard("n0"))
		s.post(wire.PathChallenge, k.chip.nodeKey().ChallengeRequest("n0"))
	},
		"the board that was taken out of n0 (EK EK) asked once from 192.0.2.1 at TIME",
		"if it is the right one after all: muster certs enable -i n0 --take-back --ek EK"},
	{"may ask for approval", []any{StateOpen}, func(s *site, _, _ *key) { s.enable("n0", withApproval) },
		"n0 may ask for your approval until DAY, and has not asked since this head started",
		"boot the node; on it: muster-agent doctor"},
	{"waits for approval", []any{whyPending, StatePending}, func(s *site, k, _ *key) {
		s.enable("n0", withApproval)
		s.post(wire.PathEnroll, s.answered(k, "n0"))
	},
		"n0 waits for approval: a TPM with the EK EK proved itself from 192.0.2.1 on DAY, level tofu",
		"if muster-agent ek on the node prints that EK: muster certs approve -i n0; if not: muster certs approve -i n0 --ek SHA256"},
	{"waits for approval, and the window is over", []any{StatePending}, func(s *site, k, _ *key) {
		s.enable("n0", withApproval)
		s.post(wire.PathEnroll, s.answered(k, "n0"))
		s.clock.move(2 * time.Hour)
		s.post(wire.PathChallenge, k.ChallengeRequest("n0"))
	},
		"n0 waits for approval: a TPM with the EK EK proved itself from 192.0.2.1 on DAY, level tofu",
		"if muster-agent ek on the node prints that EK: muster certs approve -i n0; if not: muster certs approve -i n0 --ek SHA256"},
	{"two wait for approval", []any{whyAnother, StatePending}, func(s *site, k, stranger *key) {
		s.enable("n0", withApproval)
		s.post(wire.PathEnroll, s.answered(stranger, "n0"))
		s.post(wire.PathEnroll, s.answered(k, "n0"))
	},
		"two TPMs ask to be n0: the EK OTHER waits, and the EK EK asked once from 192.0.2.1 at TIME",
		"the right one is what muster-agent ek prints on the node: muster certs approve -i n0 --ek SHA256"},
	{"may show its TPM", []any{StateOpen}, func(s *site, _, _ *key) { s.enable("n0", learning) },
		"n0 may show its TPM until DAY, and has not asked since this head started",
		"boot the node; on it: muster-agent doctor"},
	{"learned", []any{whyLearned}, func(s *site, k, _ *key) {
		s.enable("n0", learning)
		s.post(wire.PathEnroll, s.answered(k, "n0"))
	},
		"the EK EK was learned for n0 from 192.0.2.1 on DAY, level tofu",
		"if it is the right one: muster certs enable --learned -i n0"},
	{"learned, and another one", []any{whyAnother}, func(s *site, k, stranger *key) {
		s.enable("n0", learning)
		s.post(wire.PathEnroll, s.answered(k, "n0"))
		s.post(wire.PathEnroll, s.answered(stranger, "n0"))
	},
		"two TPMs ask to be n0: the EK EK was learned, and the EK OTHER asked once from 192.0.2.1 at TIME",
		"the right one is what muster-agent ek prints on the node: muster certs enable -i n0 --ek SHA256"},
	{"its maker is not known", []any{whyVendor}, func(s *site, k, _ *key) {
		s.makerOf("Chip")
		s.enable("n0", atLevel(wire.Vendor))
		s.post(wire.PathChallenge, vouchedBy(testtpm.NewMaker("Other"), k).ChallengeRequest("n0"))
	},
		"n0 asked from 192.0.2.1 at TIME with the EK EK, and its maker does not vouch for it: its issuer \"Other CA\" is not known",
		"the makers' certificates belong into ek-roots/ in the state directory; or name the EK: muster certs enable -i n0 --ek EK"},
	{"no certificate of its EK", []any{whyVendor}, func(s *site, k, _ *key) {
		s.makerOf("Chip")
		s.enable("n0", atLevel(wire.Vendor))
		s.post(wire.PathChallenge, k.ChallengeRequest("n0"))
	},
		"n0 asked from 192.0.2.1 at TIME with the EK EK, and its maker does not vouch for it: it sent no certificate of its EK",
		"the makers' certificates belong into ek-roots/ in the state directory; or name the EK: muster certs enable -i n0 --ek EK"},
	{"TPM cleared", []any{whyOtherKey}, func(s *site, k, _ *key) {
		s.enable("n0")
		use(s.Head, certificate(s.t, s.enrol(k, "n0").Cert))
		s.post(wire.PathEnroll, s.answered(k.chip.nodeKey(), "n0"))
	},
		"n0 asked from 192.0.2.1 at TIME with another key than the one on record (was its TPM cleared?), and no grant is open",
		enable},
	{"level too low", []any{whyLevel}, saw(whyLevel, "tofu is less than pinned", true),
		"n0 asked from 192.0.2.1 at TIME with the EK EK, which is not recorded, and the grant asks for more",
		"muster certs enable -i n0 --level pinned --ek EK"},
	{"another board", []any{whyOtherBoard}, func(s *site, _, stranger *key) {
		s.imports("name,mac\nn0," + mac1 + "\n")
		s.enable("n0")
		s.post(wire.PathChallenge, hinted{stranger, wire.Hints{MACs: []string{mac3}}}.ChallengeRequest("n0"))
	},
		"another machine asked once from 192.0.2.1 at TIME, to be n0: its MAC is " + mac3 + ", and n0 is on record with " + mac1,
		"if the board was changed, import what it has now: muster nodes list -i n0 -o csv > nodes.csv, which you correct, and then muster nodes import nodes.csv"},
	{"a board of several", []any{whyAmbiguous}, func(s *site, _, stranger *key) {
		s.imports("name,mac\nn0," + mac1 + "\nn1," + mac2 + "\nn2," + mac3 + "\n")
		s.enable("n0")
		s.post(wire.PathChallenge, hinted{stranger, wire.Hints{MACs: []string{mac2, mac3}}}.ChallengeRequest("n0"))
	},
		"a machine asked once from 192.0.2.1 at TIME, to be n0: its MACs and UUID are on record for n[1-2]",
		"muster nodes list"},
	{"a board of several, and no name", []any{whyAmbiguous}, func(s *site, _, stranger *key) {
		s.imports("name,mac\nn1," + mac2 + "\nn2," + mac3 + "\n")
		s.post(wire.PathChallenge, hinted{stranger, wire.Hints{MACs: []string{mac2, mac3}}}.ChallengeRequest("n0"))
	},
		"n0 asked once from 192.0.2.1 at TIME, and is not known: its MACs and UUID are on record for n[1-2]",
		"muster nodes list"},
	{"another name's EK", []any{whyEKTaken}, saw(whyEKTaken, "the EK is bound to n1", true), "n0 asked from 192.0.2.1 at TIME and was refused: the EK is bound to n1", "muster certs list"},
	{"another name's key", []any{whyKeyTaken}, saw(whyKeyTaken, "the key is bound to n1", true), "n0 asked from 192.0.2.1 at TIME and was refused: the key is bound to n1", "muster certs list"},
	{"a certificate of another record", []any{whyNotOnRecord, StateUnknown}, func(s *site, k, _ *key) {
		s.enable("n0")
		cert := certificate(s.t, s.enrol(k, "n0").Cert)
		s.putRecord(&slot{Node: "n0"})
		r := httptest.NewRequest(http.MethodGet, wire.PathSelf, nil)
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}
		s.NodeHandler().ServeHTTP(httptest.NewRecorder(), r)
	},
		"n0 showed a certificate from 192.0.2.1 at TIME that is not on record: certificate SERIAL is not on record for n0",
		enable},
	{"a CA that is burnt", []any{StateExpired}, func(s *site, k, _ *key) {
		s.active(k, "n0")
		s.rotate(RotateRequest{Compromised: true})
	},
		"the CA of the certificate of n0 was ended, as somebody else may have its key, and the node is not to believe whoever follows it", newPin},
	{"a CA that is burnt, and it asks", []any{whyCAEnded}, func(s *site, k, _ *key) {
		cert := s.active(k, "n0")
		s.rotate(RotateRequest{Compromised: true})
		r := httptest.NewRequest(http.MethodGet, wire.PathSelf, nil)
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}
		s.NodeHandler().ServeHTTP(httptest.NewRecorder(), r)
	},
		"n0 showed a certificate from 192.0.2.1 at TIME of a CA that was ended, as somebody else may have its key", newPin},
	{"a CA that was ended", []any{whyCAEnded}, saw(whyCAEnded, "ended", true),
		"n0 showed a certificate from 192.0.2.1 at TIME of a CA that was ended; its agent gets another by itself",
		"on the node: muster-agent run"},
	{"malformed", []any{whyForm}, saw(whyForm, "v: 2 is not 1", false),
		"n0 sent a request from 192.0.2.1 at TIME that was malformed: v: 2 is not 1",
		"use a muster-agent of this head's release"},
	{"malformed CSR", []any{whyCSR}, saw(whyCSR, "not a CSR", false),
		"n0 sent a request from 192.0.2.1 at TIME that was malformed: not a CSR",
		"use a muster-agent of this head's release"},
	{"too large", []any{whyTooLarge}, saw(whyTooLarge, "body of 20000 bytes", false),
		"n0 sent a request from 192.0.2.1 at TIME that was malformed: body of 20000 bytes",
		"use a muster-agent of this head's release"},
	{"late answer", []any{whyStale}, saw(whyStale, "too late", false),
		"n0 answered from 192.0.2.1 at TIME a challenge that is no longer good",
		"if this goes on: is the node's clock right?"},
	{"the head's store", []any{whyStore}, saw(whyStore, "disk full", true), "n0 asked from 192.0.2.1 at TIME, and the store could not serve: disk full", "journalctl -u muster"},
	{"the head's clock", []any{whyClock}, func(s *site, k, _ *key) {
		s.enable("n0")
		s.clock.move(-time.Hour)
		s.post(wire.PathEnroll, s.answered(k, "n0"))
	},
		"n0 asked from 192.0.2.1 at TIME, and this head will not sign: the head's clock is before the last record, DAY",
		"set the head's clock; if it is right: muster clock accept"},
	{"the head's clock is back, and nobody asks", []any{StateOpen}, func(s *site, _, _ *key) {
		s.enable("n0")
		s.clock.move(-time.Hour)
	},
		"this head signs nothing: the head's clock is before the last record, DAY; n0 may enrol until DAY, and has not asked since this head started",
		"set the head's clock; if it is right: muster clock accept; boot the node; on it: muster-agent doctor"},
	{"the head's store was set back", []any{whyRollback}, saw(whyRollback, "the store is of epoch 1, its witness has seen epoch 2", true),
		"n0 asked from 192.0.2.1 at TIME, and this head will not sign, since its store was set back: the store is of epoch 1, its witness has seen epoch 2",
		rollbackHint},
	{"the head's CA", []any{whySigning}, saw(whySigning, "the CA expired on 2046-06-01", true),
		"n0 asked from 192.0.2.1 at TIME, and the CA cannot sign: the CA expired on 2046-06-01",
		"muster ca show"},
	{"the head is busy", []any{whyOverload}, saw(whyOverload, "too many requests", false), "n0 asked from 192.0.2.1 at TIME while this head was busy; it tries again by itself", ""},
	{"TPM gone", []any{wire.TPMMissing}, says(wire.TPMMissing),
		reported + "it has no usable TPM: there is none where it looks",
		"on the node: see that the kernel has its driver (tpm_crb, tpm_tis, tpm_tis_spi), and what --tpm names"},
	{"TPM 1.2", []any{wire.TPM12}, says(wire.TPM12),
		reported + "it has no usable TPM: it is a TPM 1.2",
		"switch the TPM to 2.0 in the node's firmware if it offers that, or fit a TPM 2.0"},
	{"TPM busy", []any{wire.TPMBusy}, says(wire.TPMBusy),
		reported + "it has no usable TPM: another program holds it",
		"on the node: stop that program (tpm2-abrmd, another agent), or use --tpm device:/dev/tpmrm0"},
	{"TPM locked", []any{wire.TPMLocked}, says(wire.TPMLocked),
		reported + "it has no usable TPM: a password, a lockout or a hierarchy that is switched off is in the way",
		"on the node: muster-agent doctor; or clear the TPM in its firmware"},
	{"TPM broken", []any{wire.TPMFailed}, says(wire.TPMFailed),
		reported + "it has no usable TPM: the TPM fails",
		"on the node: muster-agent doctor; power it off completely, update the TPM's firmware or replace it"},
	{"no files", []any{wire.InstallFailed}, says(wire.InstallFailed),
		reported + "it cannot write its files",
		"on the node: see that /run/muster can be written and has room, then muster-agent run"},
	{"a strange answer", []any{wire.BadAnswer}, says(wire.BadAnswer),
		reported + "a head's answer makes no sense to it",
		"node and head must be of releases that understand each other"},
	{"NV full", []any{wire.NVFull}, says(wire.NVFull),
		reported + "its TPM's NV has no room for the certificate, which it fetches at each boot",
		"nothing, if heads are in reach at its boots; else on the node: see 'tpm2_getcap handles-nv-index' for what can be removed"},
	{"NV taken", []any{wire.NVTaken}, says(wire.NVTaken),
		reported + "something else is stored at Muster's places in its TPM's NV, so that it fetches the certificate at each boot",
		"nothing, if heads are in reach at its boots; else on the node: see 'tpm2_nvreadpublic', and set other nv-slots in agent.toml"},
	{"NV locked", []any{wire.NVLocked}, says(wire.NVLocked),
		reported + "its TPM's owner hierarchy has a password or is switched off, so that it fetches the certificate at each boot",
		"nothing, if heads are in reach at its boots; else on the node: tpm2_changeauth -c owner -p PASSWORD"},
	{"an EST client, by a wrong password", []any{whyPassword, StateOpen}, func(s *site, _, _ *key) {
		s.invite("n0")
		s.simple("n0", "wrong", "-")
	}, "somebody asked to be n0 once from 192.0.2.1 at TIME, with a wrong password or none", "if it was n0: muster certs enable --password -i n0"},
	{"an EST client, again and again", []any{whyTooOften, StateIssued}, func(s *site, _, _ *key) {
		t := s.t.(*testing.T)
		cert := given(t, s.simple("n0", s.invite("n0"), pkcs10(t, softKey(t))))
		for range renewalsOfName {
			cert = given(t, s.resimple(cert, pkcs10(t, softKey(t))))
		}
		s.resimple(cert, pkcs10(t, softKey(t)))
	}, "somebody asked to be n0 once from 192.0.2.1 at TIME, and was refused: 10 certificates in an hour are enough; try again later", "look at the client's settings"},
	{"an EST client, after a restore", []any{StateDisabled}, func(s *site, _, _ *key) {
		s.invite("n0")
		s.restore(s.backup())
	}, "n0 is not enabled", "muster certs enable --password -i n0"},
	{"a node asks where EST clients do", []any{whyClass}, func(s *site, k, _ *key) {
		s.enable("n0")
		s.resimple(certificate(s.t, s.enrol(k, "n0").Cert), "-")
	}, "n0 showed its certificate from 192.0.2.1 at TIME to EST, which is not for nodes", "on the node: muster-agent renew"},
}

var whyMasks = []struct {
	what *regexp.Regexp
	by   string
}{
	{regexp.MustCompile(`certificate [0-9a-f]{8}…`), "certificate SERIAL…"},
	{regexp.MustCompile(`certificate [0-9a-f]{32}`), "certificate SERIAL"},
	{regexp.MustCompile(`key [0-9a-f]{64}`), "key KEY"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\dZ)?`), "DAY"},
	{regexp.MustCompile(`\d\d:\d\d:\d\d`), "TIME"},
}

// TestWhyTable: each case has its sentence and what to do, word for word.
func TestWhyTable(t *testing.T) {
	var chip, other *chip
	for i, row := range whyRows {
		if i%24 == 0 { // each row's keys stay, and a TPM has room for so many
			chip, other = aChip(t), aChip(t)
		}
		t.Run(row.name, func(t *testing.T) {
			s, k, stranger := newSite(t), chip.nodeKey(), other.nodeKey()
			row.do(s, k, stranger)
			sentence, hint := s.whyOrNone("n0")
			for _, text := range []*string{&sentence, &hint} {
				*text = strings.NewReplacer(k.ekHash(), "EK", stranger.ekHash(), "OTHER").Replace(*text)
				for _, m := range whyMasks {
					*text = m.what.ReplaceAllString(*text, m.by)
				}
			}
			if sentence != row.sentence || hint != row.hint {
				t.Errorf("got\n%s\n%s\nwant\n%s\n%s", sentence, hint, row.sentence, row.hint)
			}
		})
	}
}

// whyOrNone is `muster why`; where nothing is known of a name it ends with an error, which says so.
func (s *site) whyOrNone(name string) (sentence, hint string) {
	s.t.Helper()
	v, err := s.adminWhy(s.t.(*testing.T).Context(), WhyRequest{ID: name}, noStream())
	var none *AdminError
	if errors.As(err, &none) {
		return none.Message, none.Hint
	}
	s.must(err)
	view := v.(WhyView)
	return view.Sentence, view.Hint
}

// TestWhyTableIsWhole: whatever the package and the protocol tell apart has a row, so that who adds a
// state, a reason or a code says what `muster why` makes of it.
func TestWhyTableIsWhole(t *testing.T) {
	have := map[any]bool{}
	for _, row := range whyRows {
		for _, of := range row.of {
			have[of] = true
		}
	}
	all := map[any]bool{}
	for _, code := range wire.Troubles {
		all[code] = true
	}
	for _, value := range constantsOf(t, "reason") {
		all[reason(value)] = true
	}
	for _, value := range constantsOf(t, "State") {
		all[State(value)] = true
	}
	if len(all) < 35 {
		t.Fatalf("only %d constants found: %v", len(all), all)
	}
	for _, later := range whyLater {
		if have[later] {
			t.Errorf("%v has a row: it belongs no more to whyLater", later)
		}
		delete(all, later)
	}
	for of := range all {
		if !have[of] {
			t.Errorf("%s %v has no row in whyRows", reflect.TypeOf(of), of)
		}
	}
}

// constantsOf reads the values of a string type's constants from this package's source.
func constantsOf(t *testing.T, typeName string) (values []string) {
	t.Helper()
	paths, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok || len(spec.Values) != 1 {
				return true
			}
			kind, ok := spec.Type.(*ast.Ident)
			text, literal := spec.Values[0].(*ast.BasicLit)
			if !ok || kind.Name != typeName || !literal {
				return true
			}
			value, err := strconv.Unquote(text.Value)
			if err != nil {
				t.Fatal(err)
			}
			values = append(values, value)
			return true
		})
	}
	return values
}
