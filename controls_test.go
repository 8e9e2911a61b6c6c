package muster_test

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// control is the program broken on purpose in one place: where file has from, it has to. The tests that watch
// over an invariant of docs/threat-model.md must then go red.
type control struct {
	name, file, from, to string
	pkg, tests           string
}

var controls = []control{
	{"I1: a revoked key is not barred", "signer/enroll.go", `if b.barred.Revision == 0 {`, `if true {`, "./signer", "TestRevoke$"},
	{"I1: two renewals at once", "signer/renew.go", `Guards: []store.Guard{item.Guard(), ring.item.Guard()},`, `Guards: nil,`, "./signer", "TestRenewalsMeet$"},
	{"I1: a node renews for the key of another TPM", "signer/renew.go", `return ek.Fingerprint == s.EK })`, `return true })`, "./signer", "TestNewKeyAttacks$"},
	{"I1: a proof for one certificate renews another", "signer/renew.go", `Grant: c.Serial,`, `Grant: "",`, "./signer", "TestNewKeyAttacks$"},
	{"I3: a certificate ends before the next one is used", "signer/enroll.go", `if s.Cert != nil && s.Cert.Activated {`, `if false {`, "./signer", "TestRenew$"},
	{"I3: a node waits with a key that is not the one on record", "signer/enroll.go", `case s.Cert == nil:`, `case s.Cert == nil || no.reason != whyNotEnabled:`, "./signer", "TestOtherKeyIsRefused$"},
	{"I3: a node forgets its primary key when there is room for another", "agent/renew.go", `if !untried(tpm.PrimarySlot) {`, `if true {`, "./agent", "TestRoomComes$"},
	{"I1: a key is freed while it gets a certificate", "signer/revoke.go", `append(tx.Guards, item.Guard()), append(tx.Deletes`, `nil, append(tx.Deletes`, "./signer", "TestPruneKeys$"},
	{"I5: a renewal raises the level", "signer/renew.go", `key, err := c.subject()`, `key, err := c.subject(); key.level = s.level(s.EK, wire.TOFU)`, "./signer", "TestRenewLevel$"},
	{"I10: renewed whenever it is asked for", "signer/renew.go", `if !h.due(s, c, now) {`, `if false {`, "./signer", "TestRenew$"},
	{"I10: a key for each who is due, again and again", "signer/renew.go", `c == s.Cert && h.due(s, c, now)`, `h.due(s, c, now)`, "./signer", "TestNewKeyOnceADay$"},
	{"I10: certificates in vain, over and over", "signer/ring.go", `if behind := h.followRing(ctx); behind != nil {`, `if behind := h.followRing(ctx); behind == err {`, "./signer", "TestRingCannotBeFollowed$"},
	{"I10: keys are bound for ever", "signer/revoke.go", `return h.pruneKeys(ctx)`, `return nil`, "./signer", "TestPruneKeys$"},
	{"disable stops no renewal", "signer/renew.go", `if no == nil && s.Disabled {`, `if false {`, "./signer", "TestRenewRefused$"},
	{"I1: nobody waits for approval", "signer/approve.go", `(s.Grant.Approve || s.Grant.Learn)`, `false`, "./signer", "TestApprove$"},
	{"I1: who comes later takes the place of who waits", "signer/approve.go", `was.EK != one.EK`, `false`, "./signer", "TestApprove$"},
	{"I1: approval of who came since", "signer/approve.go", `req.Expect[name] != ek`, `len(req.Expect) == 0`, "./signer", "TestApproveWhatWasSeen$"},
	{"I1: approval is dropped with its window", "signer/enable.go", `s.Grant.Approve = was.Approve`, `s.Grant.Approve = false`, "./signer", "TestApprovalStays$"},
	{"I1: a grant that learns issues", "signer/record.go", `return s.Grant.Learn && s.EK != ""`, `return false`, "./signer", "TestLearningHoldsOff$"},
	{"I1: the old board takes its name back", "signer/challenge.go", `case slices.Contains(s.Replaced, ek):`, `case len(s.Replaced) > maxReplaced && slices.Contains(s.Replaced, ek):`, "./signer", "TestReplace$"},
	{"I1: a table brings the old board back", "signer/enable.go", `if takeBack || !slices.Contains(s.Replaced, ek) {`, `if true {`, "./signer", "TestReplacedStaysOut$"},
	{"I1: the next board makes the old ones forgotten", "signer/replace.go", `append(minus(s.Replaced, []string{old}), old)`, `[]string{old}`, "./signer", "TestReplacedStaysOut$"},
	{"I1: the old board keeps its keys", "signer/remove.go", `bar(name, chunk, now, by)`, `bar(name, chunk[:0], now, by)`, "./signer", "TestReplace$"},
	{"I4: a node takes a name that an EST client's certificate has", "signer/names.go", `err = all.refuse(name, name, holdNode)`, `_ = all.refuse(name, name, holdNode)`, "./signer", "TestNamesOfClients$"},
	{"I5: any attributes will do", "internal/template/template.go", `FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true,
			UserWithAuth: true, NoDA: true, SignEncrypt: true,`, `FixedTPM: true, UserWithAuth: true, NoDA: true, SignEncrypt: true,`, "./signer", "TestWrongKeys$"},
	{"I5: any proof will do", "signer/attest/proof.go", `!hmac.Equal(a.proof, t.Proof(t.Secret(key)))`, `false && key == nil && t == nil && hmac.Equal(nil, nil)`, "./signer", "TestWrongAnswers$"},
	{"I5: the level is what the node says", "internal/wire/transcript.go", `t.CSR[:], []byte(t.Level),`, `t.CSR[:],`, "./signer", "TestLevelOfTheAnswer$"},
	{"I5: who was learned first stays", "signer/enable.go", `e.slot.Disabled, e.slot.Pending, e.slot.Learned = true, nil, nil`, `e.slot.Disabled, e.slot.Pending = true, nil`, "./signer", "TestLearnedGoes$"},
	{"I5: what was not shown is pinned", "signer/enable.go", `if ek = s.Learned.EK; req.Expect[name] != ek {`, `if ek = s.Learned.EK; false {`, "./signer", "TestLearnedGoes$"},
	{"I5: a certificate of any EK will do", "signer/ekroots/ekroots.go", `case c.Fingerprint == fingerprint:`, `case c.Fingerprint == c.Fingerprint || c.Fingerprint == fingerprint:`, "./signer", "TestVendorReplayed$"},
	{"I5: whoever signs itself makes TPMs", "signer/ekroots/ekroots.go", `rooted = rooted || l.roots[c]`, `if l.roots[c] = l.roots[c] || bytes.Equal(c.Subject, c.Issuer); l.roots[c] { rooted = true }`, "./signer/ekroots", "TestChains$"},
	{"I5: a CA need not be one", "signer/ekroots/ekroots.go", `!c.IsCA || !c.MaySign`, `false`, "./signer/ekroots", "TestChains$"},
	{"I5: CAs below CAs, without end", "signer/ekroots/ekroots.go", `below > c.PathLen`, `false`, "./signer/ekroots", "TestChains$"},
	{"I5: a certificate for whatever", "signer/ekroots/ekroots.go", `case !has(c.ExtKeyUsage, oidEKCertificate):`, `case false:`, "./signer/ekroots", "TestFixtures$"},
	{"I5: signatures are not looked at", "signer/ekroots/ekroots.go", `err := c.SignedBy(issuer); err != nil`, `err := error(nil); err != nil`, "./signer/ekroots", "TestChains$"},
	{"I6: whoever signs itself is a CA", "agent/trust.go", `|| t.tofu && selfSigned(c)`, `|| selfSigned(c)`, "./agent", "TestHandshake$"},
	{"I6, I12: the pin moves without a cross-certificate", "agent/trust.go", `err == nil && c.IsCA {`, `c.IsCA && (err == nil || err != nil) {`, "./agent", "TestRoots$"},
	{"I7: no look at the record on each request", "signer/self.go", `case s.Revoked:`, `case false:`, "./signer", "TestRevoke$"},
	{"I7: a restore forgets who was revoked", "signer/carry.go", `if c.Revoked && !s.Revoked {`, `if c.Revoked && s.Revoked {`, "./signer", "TestRestoreKeepsRevocations$"},
	{"I7: a restore forgets which keys are barred", "signer/restore.go", `for key, name := range seen.barred {`, `for key, name := range map[string][]byte{} {`, "./signer", "TestRestoreKeepsRevocations$"},
	{"I3: who ended with the CA is revoked by a restore", "signer/restore.go", `if ca.endedWith(e) {`, `if false {`, "./signer", "TestAcceptBeforeNodesAreBack$"},
	{"I8: a witness that failed once has failed", "signer/witness.go", `b.err = b.withFile(b.replace)`, ``, "./signer", "TestWitnessIsTriedAgain$"},
	{"I9: any file is taken for the witness", "signer/witness.go", `err == nil && !os.SameFile(there, b.id)`, `err == nil && there == nil`, "./signer", "TestWitnessGoneStaysGone$"},
	{"I12: the witness has no say in the CRL's number", "signer/crl.go", `h.book.Load().crl().Number) + 1`, `0) + 1`, "./signer", "TestCRLGoesOnFromTheWitness$"},
	{"I7: a CA that ended vouches on", "signer/self.go", `case !h.ring.Load().lives(c.CA):`, `case false:`, "./signer", "TestRevokeAll$"},
	{"I7: OCSP says what it said before", "signer/ocsp.go", `return a != nil && (end == nil || a.end != nil)`, `return a != nil`, "./signer", "TestOCSP$"},
	{"I10: OCSP signs for each who asks", "signer/ocsp.go", `age < ocspLife/2`, `age < 0`, "./signer", "TestOCSPSignatures$"},
	{"I10: strangers' refusals are written down", "signer/node.go", `	if who.proven {
		h.journalRefusal`, `	if true {
		h.journalRefusal`, "./signer", "TestStrangersWriteNothing$"},
	{"I10: a stranger's keys verify signatures", "signer/ekroots/ekroots.go", `if !l.roots[c] {
			continue`, `if l.roots[c] {
			continue`, "./signer/ekroots", "TestStrangersKeysAreNotUsed$"},
	{"I10: each EK of a claim has signatures of its own", "signer/vouched.go", `err := look.Check(one.Certs`, `err := h.makers.Look(now).Check(one.Certs`, "./signer", "TestOneBudgetForAClaim$"},
	{"I10: an object identifier of any length", "internal/ekcert/ekcert.go", `len(*oid) <= maxArcs`, `len(*oid) <= 1<<16`, "./internal/ekcert", "TestLongOID$"},
	{"I10: whatever a stranger writes is kept", "signer/why.go", `len(one.Detail) > maxDetail`, `len(one.Detail) > 1<<20`, "./signer", "TestDetailIsBounded$"},
	{"I10: others who ask fill the journal", "signer/node.go", `if !h.refusals.first(about + "/" + no.detail) {`, `if !h.refusals.allow(about+"/"+no.detail, now) {`, "./signer", "TestOthersAreJournalledOnce$"},
	{"I12: the CRL's number begins anew", "signer/crl.go", `max(last.Number, ca.publishedNumber(), h.book.Load().crl().Number) + 1`, `1`, "./signer", "TestCRLNeverGoesBack$"},
	{"I12: no cross-certificate goes along", "signer/ring.go", `der = append(der, a.cross)`, `_ = a.cross`, "./signer", "TestRotation$"},
	{"I12: --finish waits for nobody", "signer/rotate.go", `len(waiting) > 0 && !force`, `false`, "./signer", "TestRotation$"},
	{"I12: a burnt CA certifies its successor", "signer/rotate.go", `"ca-compromised", roleBurnt, noLink`, `"ca-compromised", roleBurnt, forward`, "./signer", "TestCompromised$"},
}

// TestControls breaks the program, and sees that it is seen.
func TestControls(t *testing.T) {
	t.Parallel()
	for _, c := range controls {
		t.Run(c.name, func(t *testing.T) {
			out, err := c.run(t)
			switch {
			case err == nil:
				t.Errorf("%s %s does not see it", c.pkg, c.tests)
			case !strings.Contains(out, "--- FAIL: "+strings.TrimSuffix(c.tests, "$")):
				t.Errorf("it fails in another way: %s", out)
			}
		})
	}
}

// run runs the tests on the broken program.
func (c *control) run(t *testing.T) (string, error) {
	t.Helper()
	broken := overlay(t, change{c.file, c.from, c.to})
	out, err := exec.Command("go", "test", "-count=1", "-overlay", broken, "-run", "^"+c.tests, c.pkg).CombinedOutput()
	return string(out), err
}

// change is one of the places in which a program is broken.
type change struct{ file, from, to string }

// overlay is a file for -overlay of go build: only the compiler sees the changes, each in a file of its own.
func overlay(t *testing.T, changes ...change) string {
	t.Helper()
	dir := t.TempDir()
	replace := map[string]string{}
	for i, c := range changes {
		path, err := filepath.Abs(c.file)
		if err != nil {
			t.Fatal(err)
		}
		source := readFile(t, path)
		if n := strings.Count(string(source), c.from); n != 1 {
			t.Fatalf("%s has %q %d times, not once", c.file, c.from, n)
		}
		replace[path] = filepath.Join(dir, strconv.Itoa(i)+".go")
		writeFile(t, replace[path], []byte(strings.Replace(string(source), c.from, c.to, 1)))
	}
	list, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "overlay.json")
	writeFile(t, path, list)
	return path
}

// brokenHead is the program muster, broken.
func brokenHead(t *testing.T, changes ...change) string {
	t.Helper()
	dir := t.TempDir()
	if err := build(dir, "", "-overlay="+overlay(t, changes...), "./signer/cmd/muster"); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "muster")
}
