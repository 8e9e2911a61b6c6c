package agent

import (
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"muster/agent/internal/tpm"
	"muster/internal/wire"
)

// finding is one line of doctor's.
type finding struct {
	grade  string // ok, warn, fail
	what   string
	remedy string
}

func ok(format string, args ...any) finding { return finding{"ok", fmt.Sprintf(format, args...), ""} }

func warn(remedy, format string, args ...any) finding {
	return finding{"warn", fmt.Sprintf(format, args...), remedy}
}

func fail(remedy, format string, args ...any) finding {
	return finding{"fail", fmt.Sprintf(format, args...), remedy}
}

// failed puts an error into doctor's words.
func failed(err error) finding {
	var o *Outcome
	if errors.As(err, &o) {
		return fail(o.Hint, "%s", o.Message)
	}
	return fail("", "%v", err)
}

const doctorTimeout = 5 * time.Second

// doctor examines one thing after the other; later ones use what earlier ones found.
type doctor struct {
	boot
	ctx     context.Context
	w       io.Writer
	open    error // of the TPM
	ids     []*identity
	trusted error // of resolveTrust
	down    bool  // no head can be connected to
	failed  bool
}

// Doctor writes a line for each thing that enrolment needs: whether it is well, and what to do. It
// changes nothing. The error is an [*Outcome] of StatusFailed when something failed.
func (a *Agent) Doctor(ctx context.Context, w io.Writer) error {
	looker, clock := *a, *a.clock
	clock.set = func(time.Time) error { return errors.New("doctor changes nothing") }
	looker.clock = &clock
	looker.log = slog.New(slog.DiscardHandler) // the table says it
	d := &doctor{boot: boot{Agent: &looker}, ctx: ctx, w: w}
	d.tpm, d.open = a.openTPM(ctx)
	if d.open == nil {
		defer d.tpm.Close()
	}
	for _, part := range []struct {
		name string
		look func() finding
	}{
		{"tpm", d.lookTPM}, {"nv", d.lookNV}, {"key", d.lookKey}, {"clock", d.lookClock}, {"name", d.lookName},
		{"config", d.lookConfig}, {"network", d.lookNetwork}, {"head", d.lookHead}, {"certificate", d.lookCertificate},
	} {
		f := part.look()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		d.write(part.name, f)
	}
	if d.failed {
		return &Outcome{Status: StatusFailed, Message: "something is wrong: see the lines that begin with fail"}
	}
	return nil
}

func (d *doctor) write(name string, f finding) {
	d.failed = d.failed || f.grade == "fail"
	fmt.Fprintf(d.w, "%-4s  %-11s  %s\n", f.grade, name, f.what)
	if f.remedy != "" {
		fmt.Fprintf(d.w, "%19s%s\n", "", f.remedy)
	}
}

func (d *doctor) lookTPM() finding {
	if d.open != nil {
		return failed(tpmError(d.open))
	}
	p, err := d.tpm.Properties()
	if err != nil {
		d.open = err
		return failed(tpmError(err))
	}
	text := fmt.Sprintf("%s, made by %s, firmware %d.%d", d.tpmSpec(), p.Manufacturer, p.Firmware[0]>>16, p.Firmware[0]&0xFFFF)
	switch {
	case !p.StorageEnabled:
		return fail("enable the storage hierarchy in the firmware", "%s: its storage hierarchy is disabled", text)
	case !p.EndorsementEnabled:
		return fail("enable the endorsement hierarchy in the firmware", "%s: its endorsement hierarchy is disabled", text)
	case p.OwnerAuth:
		return warn("clear it: tpm2_changeauth -c owner -p PASSWORD", "%s: its owner hierarchy has a password, so that nothing can be kept in it", text)
	}
	return d.lookLeftOvers(text)
}

// lookLeftOvers counts what some program has left in a TPM that has room for three of each.
func (d *doctor) lookLeftOvers(text string) finding {
	if !d.tpm.Bare() {
		return ok("%s", text)
	}
	h, err := d.tpm.Handles()
	if err != nil {
		return failed(tpmError(err))
	}
	var what, how []string
	if n := len(h.Transient); n > 0 {
		what, how = append(what, fmt.Sprintf("objects: %d", n)), append(how, "tpm2_flushcontext -t")
	}
	if n := len(h.Sessions); n > 0 {
		what, how = append(what, fmt.Sprintf("sessions: %d", n)), append(how, "tpm2_flushcontext -l")
	}
	if len(what) > 0 {
		return warn(strings.Join(how, "; "), "%s; some program has left things loaded (%s)", text, strings.Join(what, ", "))
	}
	return ok("%s", text)
}

func (d *doctor) lookNV() finding {
	if d.open != nil {
		return fail("", "not examined without a TPM")
	}
	var err error
	var useless []error
	if d.ids, useless, err = d.readIdentities(d.tpm); err != nil {
		return failed(tpmError(err))
	}
	if len(d.ids) > 0 {
		d.have = d.ids[0]
	}
	switch {
	case len(useless) > 0:
		return warn("muster-agent run, which writes another", "a record is of no use: %v", errors.Join(useless...))
	case d.have == nil:
		return ok("no record yet")
	}
	return ok("certificate %s of %s", short(d.have.serial()), d.have.node())
}

// lookKey has the key sign something that no protocol signs.
func (d *doctor) lookKey() finding {
	if d.open != nil {
		return fail("", "not examined without a TPM")
	}
	if d.have == nil {
		return d.lookKeptKey()
	}
	start := time.Now()
	if err := d.trySign(); err != nil {
		return fail("muster-agent forget, then muster-agent run", "the key of the certificate in NV does not sign: %v", err)
	}
	return ok("%v%s signs in %v", d.have.key.Algorithm(), at(d.have.key), time.Since(start).Round(time.Millisecond))
}

// lookKeptKey is lookKey before there is a certificate, or after forget.
func (d *doctor) lookKeptKey() finding {
	keys, err := d.tpm.Keys(d.slots)
	if err != nil {
		return failed(tpmError(err))
	}
	var found []string
	for _, key := range keys {
		found = append(found, fmt.Sprintf("%v%s", key.Algorithm(), at(key)))
	}
	if len(found) == 0 {
		return ok("none yet")
	}
	return ok("%s, no certificate yet", strings.Join(found, " and "))
}

// at says where a key is, as the documents write a handle.
func at(key *tpm.Key) string {
	if key.Handle() == 0 {
		return ", derived at each boot,"
	}
	return fmt.Sprintf(" at 0x%08X", key.Handle())
}

func (d *doctor) trySign() error {
	digest := sha256.Sum256([]byte("muster-agent doctor"))
	_, err := d.have.key.Sign(nil, digest[:], crypto.SHA256)
	return err
}

func (d *doctor) lookClock() finding {
	now, floor := d.clock.now(), d.clock.floor(nil)
	switch {
	case d.clock.synchronised():
		return ok("%s, synchronised", stamp(now))
	case now.Before(floor):
		return warn("nothing, if the head's clock is right: see --clock", "%s, which is before this program was made (%s)", stamp(now), stamp(floor))
	}
	return ok("%s, not synchronised; mode %s", stamp(now), d.clock.mode)
}

func (d *doctor) lookName() finding {
	h := hints(d.sys)
	switch {
	case d.name != "" && d.have != nil && d.have.node() != d.name:
		return warn("muster.node="+d.have.node()+", or rename the machine", "%s, but the certificate is for %s: the head decides names", d.name, d.have.node())
	case d.name != "":
		return ok("%s", d.name)
	case len(h.MACs) > 0 || h.UUID != "":
		return ok("none; the head may know the node by %s %s", strings.Join(h.MACs, " "), h.UUID)
	}
	return warn("muster.node=NAME, or a hostname", "none, and no MAC or UUID for the head to know the node by")
}

func (d *doctor) lookConfig() finding {
	d.trust, d.trusted = d.resolveTrust(pinsOf(d.ids))
	remedy := "muster.head=https://HEAD:8443 on the kernel command line, or head = … in " + DefaultFile
	last, _ := parseHeads(d.lastStatus().Head)
	switch {
	case d.trusted != nil:
		return failed(d.trusted)
	case len(d.heads) == 0 && len(last) == 1 && d.have != nil:
		d.heads = last
		return warn(remedy+", for the next boot", "no head is configured; looking at that of the last run, %s; the CA is pinned by %s", last[0], d.trust.from)
	case len(d.heads) == 0:
		return fail(remedy, "no head is configured")
	case len(d.warnings) > 0:
		return warn("see 'muster-agent run --help' for the options", "%s", strings.Join(d.warnings, "; "))
	}
	var heads []string
	for _, h := range d.heads {
		heads = append(heads, h.String())
	}
	return ok("%s; the CA is pinned by %s", strings.Join(heads, " "), d.trust.from)
}

func (d *doctor) lookNetwork() finding {
	var bad []string
	for _, h := range d.heads {
		conn, err := (&net.Dialer{Timeout: doctorTimeout}).DialContext(d.ctx, "tcp", hostPort(h))
		if err != nil {
			bad = append(bad, err.Error())
			continue
		}
		conn.Close()
	}
	switch {
	case len(d.heads) == 0:
		return warn("", "not examined without a head")
	case len(bad) == len(d.heads):
		d.down = true
		return fail("bring the network up; see that 'muster serve' runs and no firewall is between", "no head answers: %s", strings.Join(bad, "; "))
	case len(bad) > 0:
		return warn("", "%d of %d heads do not answer: %s", len(bad), len(d.heads), strings.Join(bad, "; "))
	}
	return ok("%d of %d heads answer", len(d.heads), len(d.heads))
}

// lookHead makes a handshake with each head, and verifies it as run would.
func (d *doctor) lookHead() finding {
	switch { // what is amiss has been said
	case d.trusted != nil || len(d.heads) == 0:
		return warn("", "not examined without a CA and a head")
	case d.down:
		return warn("", "not examined: none answers")
	}
	c := d.client(nil)
	defer c.close()
	var good []string
	var last error
	for _, h := range c.heads {
		ctx, cancel := context.WithTimeout(d.ctx, doctorTimeout)
		conn, err := c.dial(ctx, hostPort(h))
		cancel()
		if stranger(err) != nil {
			return failed(d.trust.headError(h.Host, err))
		}
		if err != nil {
			last = err
		} else {
			good = append(good, fmt.Sprintf("%s until %s", h.Host, day(conn.verified.leaf.NotAfter)))
			conn.Close()
		}
	}
	if len(good) == 0 && mute(last) {
		return fail(hintMute, "no head shakes hands: %v", last)
	}
	if len(good) == 0 {
		return fail("see that muster.head= names the port for nodes (8443), and what 'muster serve' logs", "no head shakes hands: %v", last)
	}
	slices.Sort(good)
	return ok("verified: %s", strings.Join(good, ", "))
}

func (d *doctor) lookCertificate() finding {
	if d.have == nil {
		return warn("muster-agent run; if it does not end with a certificate, on the head: muster why "+hintName(d.name), "none")
	}
	now, leaf := d.clock.past(d.have.leaf), d.have.leaf
	why := "on the head: muster why " + leaf.Subject.CommonName
	left := leaf.NotAfter.Sub(now)
	if left <= 0 {
		return fail("muster-agent run", "expired on %s", day(leaf.NotAfter))
	}
	_, err := os.Stat(d.path(fileCert))
	if err != nil {
		return warn("muster-agent run", "%s until %s, but its files are not installed", leaf.Subject.CommonName, day(leaf.NotAfter))
	}
	// The first use of a certificate changes the head's record, so that it is left to run.
	if last := d.lastStatus(); d.trusted != nil || len(d.heads) == 0 || last.State != "active" && last.State != stateDisabled || last.Serial != d.have.serial() {
		return ok("%s until %s (%d days)", leaf.Subject.CommonName, day(leaf.NotAfter), int(left.Hours()/24))
	}
	ctx, cancel := context.WithTimeout(d.ctx, doctorTimeout)
	defer cancel()
	self, _, err := d.self(ctx, d.have)
	var e *wire.Error
	switch {
	case errors.As(err, &e) && code(err) != "":
		return fail(why, "the head answers %v", e)
	case d.down:
		return warn("", "%s until %s (%d days); no head confirms it", leaf.Subject.CommonName, day(leaf.NotAfter), int(left.Hours()/24))
	case err != nil:
		return warn("", "%s until %s; no head confirms it: %v", leaf.Subject.CommonName, day(leaf.NotAfter), err)
	}
	if self.State == stateDisabled {
		return warn(why, "%s until %s (%d days), but disabled on the head, which will not renew it", leaf.Subject.CommonName, day(leaf.NotAfter), int(left.Hours()/24))
	}
	return ok("%s until %s (%d days), %s at the head", leaf.Subject.CommonName, day(leaf.NotAfter), int(left.Hours()/24), self.State)
}
