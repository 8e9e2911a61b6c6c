package agent

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"muster/agent/cmdline"
	"muster/agent/internal/tpm"
	"muster/internal/template"
	"muster/internal/wire"
)

// DefaultFile is the configuration file, under Config.Root. It may be absent.
const DefaultFile = "/etc/muster/agent.toml"

// DefaultWait is how long run waits for a head that is out of reach or has not enabled the node.
const DefaultWait = 10 * time.Minute

// Options are the settings that a person gives, as they are written. An empty one is not set.
type Options struct {
	Head     string // https URLs of the heads, separated by commas; without a port it is 8443
	CA       string // pins "sha256:HEX" or PEM files, separated by commas; or "tofu"
	Node     string // the node's name; default: the hostname
	Wait     string // a duration ("10m") or seconds
	TPM      string // device:PATH, swtpm:path=SOCKET, swtpm:host=HOST,port=PORT
	Install  string // profiles, separated by commas; default "pem"
	Clock    string // set, trust or off; default "set" in an initramfs, else "trust"
	Key      string // p256 (default), p384, rsa2048
	KeySlots string // two persistent handles, separated by a comma
	NVSlots  string // two NV indices, separated by a comma
	Forget   string // "1": erase the records in NV before anything else
}

// option returns the field that a name stands for, nil for no such option.
func (o *Options) option(name string) *string {
	switch name {
	case "head":
		return &o.Head
	case "ca":
		return &o.CA
	case "node":
		return &o.Node
	case "wait":
		return &o.Wait
	case "tpm":
		return &o.TPM
	case "install":
		return &o.Install
	case "clock":
		return &o.Clock
	case "key":
		return &o.Key
	case "key-slots":
		return &o.KeySlots
	case "nv-slots":
		return &o.NVSlots
	case "forget":
		return &o.Forget
	}
	return nil
}

var optionNames = []string{"head", "ca", "node", "wait", "tpm", "install", "clock", "key", "key-slots", "nv-slots", "forget"}

// Config is what [New] makes an Agent from. Its zero value reads /proc/cmdline and
// /etc/muster/agent.toml and works on the running system.
//
// An option is taken from Options, else from the file, else from the kernel command line, where its
// name has "muster." before it, or "rd.muster." for an initramfs alone.
type Config struct {
	Options

	File    string // configuration file; "": DefaultFile under Root, which may be absent
	Cmdline string // the kernel command line's file; "": /proc/cmdline
	Root    string // every file that is read or written for good is under it; "": /
	Sys     string // sysfs; "": /sys
	Dev     string // where the TPM's device is; "": /dev

	Log          *slog.Logger          // nil: nothing is logged
	Now          func() time.Time      // nil: time.Now
	Synchronised func() bool           // whether NTP or the like disciplines the clock; nil: adjtimex(2)
	SetClock     func(time.Time) error // nil: clock_settime(2)
	Built        time.Time             // lowest time that can be: when the program's source was committed
	Hostname     func() (string, error)
	// Online waits for the network, while the TPM is at work already; nil: it is up. It is asked before
	// each connection to a head, with the reason why the one before failed, nil where it did not. A name
	// that comes with the network is taken then.
	Online func(ctx context.Context, failed error) error
}

// New reads the sources and checks every value, once. Errors are an [*Outcome] of StatusConfig that
// names the source.
func New(c Config) (*Agent, error) {
	c.defaults()
	s := &settings{from: map[string]string{}}
	if err := s.readCmdline(c.Cmdline, stage(c.Root)); err != nil {
		return nil, err
	}
	if err := s.readFile(c.Root, c.File); err != nil {
		return nil, err
	}
	s.readOptions(c.Options)
	a := &Agent{root: c.Root, sys: c.Sys, dev: c.Dev, log: c.Log, hostname: c.Hostname, network: c.Online, warnings: s.warnings}
	a.clock = &clock{now: c.Now, synchronised: c.Synchronised, set: c.SetClock, built: c.Built}
	if err := s.check(a); err != nil {
		return nil, err
	}
	if a.clock.mode == "" {
		a.clock.mode = clockTrust
		if a.initramfs() {
			a.clock.mode = clockSet
		}
	}
	a.named = s.Node != ""
	a.findName()
	for _, w := range a.warnings {
		a.log.Warn("configuration", "what", w)
	}
	return a, nil
}

func (c *Config) defaults() {
	if c.Root == "" {
		c.Root = "/"
	}
	if c.Cmdline == "" {
		c.Cmdline = "/proc/cmdline"
	}
	if c.Sys == "" {
		c.Sys = "/sys"
	}
	if c.Dev == "" {
		c.Dev = "/dev"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Synchronised == nil {
		c.Synchronised = synchronised
	}
	if c.SetClock == nil {
		c.SetClock = setClock
	}
	if c.Hostname == nil {
		c.Hostname = os.Hostname
	}
	if c.Online == nil {
		c.Online = func(context.Context, error) error { return nil }
	}
}

// settings collects the options, and where each was set.
type settings struct {
	Options
	from     map[string]string
	warnings []string
}

const cmdlineSource = "kernel command line"

func (s *settings) put(name, value, from string) bool {
	field := s.option(name)
	if field == nil {
		return false
	}
	// A node that trusts or asks somebody else than its kernel command line says has a person wondering why. What he types
	// is another matter.
	if earlier := *field; earlier != "" && earlier != value && (name == "ca" || name == "head") && !strings.HasPrefix(from, "--") {
		s.warnings = append(s.warnings, fmt.Sprintf("%s: %s counts, not %s (%s)", from, value, earlier, s.from[name]))
	}
	*field, s.from[name] = value, from
	return true
}

func (s *settings) readOptions(o Options) {
	for _, name := range optionNames {
		if v := *o.option(name); v != "" {
			s.put(name, v, "--"+name)
		}
	}
}

func (s *settings) readCmdline(path string, stage cmdline.Stage) error {
	line, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // /proc is not mounted
	}
	if err != nil {
		return badConfig("", "%s: %v", cmdlineSource, err)
	}
	for _, w := range cmdline.Agent(string(line), stage) {
		s.put(w.Name, w.Value, cmdlineSource+", muster."+w.Name)
	}
	if unknown := cmdline.Unknown(string(line), stage, optionNames); len(unknown) > 0 {
		s.warnings = append(s.warnings, cmdlineSource+": unknown "+strings.Join(unknown, " "))
	}
	return nil
}

// readFile reads TOML. Unlike the kernel command line, which many programs share, it is ours alone,
// so a key that nothing understands is an error.
func (s *settings) readFile(root, path string) error {
	absent := path == ""
	if absent {
		path = filepath.Join(root, DefaultFile)
	}
	text, err := os.ReadFile(path)
	if absent && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return badConfig("give --config a file that can be read", "%v", err)
	}
	var file map[string]any
	if _, err := toml.Decode(string(text), &file); err != nil {
		var parse toml.ParseError
		if errors.As(err, &parse) {
			return badConfig("see 'muster-agent run --help' for the options", "%s:%d: %s", path, parse.Position.Line, parse.Message)
		}
		return badConfig("", "%s: %v", path, err)
	}
	for name, v := range file {
		from := fmt.Sprintf("%s:%d: %s", path, lineOf(text, name), name)
		if s.option(name) == nil || name == "forget" {
			return badConfig("the options are "+strings.Join(optionNames[:len(optionNames)-1], ", "), "%s: no such option", from)
		}
		value, err := tomlText(v)
		if err != nil {
			return badConfig("write a string, or a list of strings", "%s: %v", from, err)
		}
		s.put(name, value, from)
	}
	return nil
}

// tomlText gives a TOML value the spelling of a flag.
func tomlText(v any) (string, error) {
	switch v := v.(type) {
	case string:
		return v, nil
	case int64:
		return strconv.FormatInt(v, 10), nil
	case []any:
		var parts []string
		for _, e := range v {
			s, err := tomlText(e)
			if err != nil {
				return "", err
			}
			parts = append(parts, s)
		}
		return strings.Join(parts, ","), nil
	}
	return "", errors.New("neither a string, a number nor a list")
}

// lineOf finds where a top-level key stands, which the TOML library does not tell.
func lineOf(text []byte, key string) int {
	re := regexp.MustCompile(`(?m)^[ \t]*\[*[ \t]*["']?` + regexp.QuoteMeta(key) + `["']?[ \t]*[=\].]`)
	at := re.FindIndex(text)
	if at == nil {
		return 1
	}
	return 1 + strings.Count(string(text[:at[0]]), "\n") + strings.Count(string(text[at[0]:at[1]]), "\n")
}

// check parses every value into a.
func (s *settings) check(a *Agent) error {
	a.name, a.spec = s.Node, s.TPM
	for _, c := range []struct {
		name string
		f    func() error
		hint string
	}{
		{"head", func() (err error) { a.heads, err = parseHeads(s.Head); return }, "write https://HOST:8443; several with commas between them"},
		{"ca", func() (err error) { a.ca, err = parseCA(s.CA); return }, "write sha256: and 64 hex digits ('muster ca show' on the head prints them), the name of a PEM file, or tofu"},
		{"node", func() error { return wire.CheckName(s.Node) }, "write the node's name as 'muster certs list' shows it on the head"},
		{"wait", func() (err error) { a.wait, err = parseWait(s.Wait); return }, "write 10m, 90s or a number of seconds"},
		{"tpm", func() error { return checkSpec(s.TPM) }, "write device:/dev/tpmrm0, swtpm:path=SOCKET or swtpm:host=HOST,port=PORT"},
		{"install", func() (err error) { a.profiles, err = parseInstall(s.Install); return }, "the only profile is pem"},
		{"clock", func() (err error) { a.clock.mode, err = parseClock(s.Clock); return }, "write set, trust or off"},
		{"key", func() (err error) { a.alg, err = parseKey(s.Key); return }, "write p256, p384 or rsa2048"},
		{"key-slots", func() (err error) { a.slots.Keys, err = parseSlots(s.KeySlots, tpm.DefaultSlots.Keys, 0x81); return }, "write two persistent handles, like 0x81004E00,0x81004E01"},
		{"nv-slots", func() (err error) { a.slots.NV, err = parseSlots(s.NVSlots, tpm.DefaultSlots.NV, 0x01); return }, "write two NV indices, like 0x01804E00,0x01804E01"},
		{"forget", func() (err error) { a.forget, err = parseBool(s.Forget); return }, "write 1 or 0"},
	} {
		if err := c.f(); err != nil {
			return badConfig(c.hint, "%s: %v", s.from[c.name], err)
		}
	}
	a.ca.from = s.from["ca"]
	return nil
}

// defaultPort is the head's for nodes, not that of web servers.
const defaultPort = "8443"

func parseHeads(text string) ([]*url.URL, error) {
	var heads []*url.URL
	for _, part := range list(text) {
		u, err := url.Parse(part)
		if err != nil {
			return nil, fmt.Errorf("%q is not a URL", part)
		}
		if u.Scheme != "https" || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
			return nil, fmt.Errorf("%q is not https://HOST:PORT", part)
		}
		port := u.Port()
		if port == "" {
			port = defaultPort
		}
		heads = append(heads, &url.URL{Scheme: u.Scheme, Host: net.JoinHostPort(u.Hostname(), port)})
	}
	return heads, nil
}

// caOption is --ca as it was written; resolveTrust turns it into a trust.
type caOption struct {
	tofu  bool
	pins  []pin
	files []string
	from  string // where it was set
}

func (c caOption) given() bool { return c.tofu || len(c.pins)+len(c.files) > 0 }

func parseCA(text string) (c caOption, err error) {
	if text == "tofu" {
		return caOption{tofu: true}, nil
	}
	for _, part := range list(text) {
		digits, ok := strings.CutPrefix(part, "sha256:")
		if !ok {
			if part == "tofu" {
				return caOption{}, errors.New("tofu stands alone: beside a pin it would undo it")
			}
			if _, err := readCertificates(part); err != nil {
				return caOption{}, err
			}
			c.files = append(c.files, part)
			continue
		}
		if strings.HasPrefix(digits, "sha256:") {
			return caOption{}, fmt.Errorf("%q has sha256: twice; what 'muster ca show' prints has it already", part)
		}
		b, err := hex.DecodeString(digits)
		if err != nil || len(b) != len(pin{}) {
			return caOption{}, fmt.Errorf("%q is not sha256: and 64 hex digits", part)
		}
		c.pins = append(c.pins, pin(b))
	}
	return c, nil
}

func parseWait(text string) (time.Duration, error) {
	if text == "" {
		return DefaultWait, nil
	}
	d, err := time.ParseDuration(text)
	if n, nerr := strconv.ParseUint(text, 10, 31); nerr == nil {
		d, err = time.Duration(n)*time.Second, nil
	}
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is not a duration", text)
	}
	return d, nil
}

// checkSpec refuses what tpm.Open would, before anything else is done.
func checkSpec(text string) error {
	kind, rest, _ := strings.Cut(text, ":")
	if text == "" || rest != "" && (kind == "device" || kind == "swtpm") {
		return nil
	}
	return fmt.Errorf("%q names no TPM", text)
}

func parseInstall(text string) ([]string, error) {
	if text == "" {
		return []string{"pem"}, nil
	}
	profiles := list(text)
	for _, p := range profiles {
		if p != "pem" {
			return nil, fmt.Errorf("no profile %q", p)
		}
	}
	return slices.Compact(profiles), nil
}

func parseKey(text string) (template.Algorithm, error) {
	if text == "" {
		return template.P256, nil
	}
	return template.ParseAlgorithm(text)
}

// parseSlots reads two handles whose first byte is kind (TPM 2.0 part 2, 7.2).
func parseSlots(text string, def [2]uint32, kind uint32) (slots [2]uint32, err error) {
	parts := list(text)
	if len(parts) == 0 {
		return def, nil
	}
	if len(parts) != 2 || parts[0] == parts[1] {
		return slots, errors.New("not two different handles")
	}
	for i, part := range parts {
		n, err := strconv.ParseUint(part, 0, 32)
		if err != nil || uint32(n)>>24 != kind {
			return [2]uint32{}, fmt.Errorf("%q is not a handle from %#02x000000 on", part, kind)
		}
		slots[i] = uint32(n)
	}
	return slots, nil
}

func parseBool(text string) (bool, error) {
	switch text {
	case "", "0":
		return false, nil
	case "1":
		return true, nil
	}
	return false, fmt.Errorf("%q is neither 0 nor 1", text)
}

// list splits at commas and drops white space and empty parts.
func list(text string) []string {
	var parts []string
	for _, p := range strings.Split(text, ",") {
		if p = strings.TrimSpace(p); p != "" {
			parts = append(parts, p)
		}
	}
	return parts
}
