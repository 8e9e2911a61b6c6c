// Package inventory reads what a site has about its nodes already: tables (CSV, JSON), /etc/hosts and
// ClusterShell's groups.
//
// It holds one invariant: what comes out is in one spelling (lower-case addresses and hashes, no value
// twice) and no name, MAC, UUID or EK in it belongs to two nodes; whatever breaks that is an [*Error]
// with the place, and nothing comes out.
package inventory

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Format is how a file is written.
type Format string

const (
	CSV    Format = "csv"    // a table with a header; fields are apart by commas, semicolons or tabs
	JSON   Format = "json"   // a list of objects, or an object with such a list in "nodes"
	Hosts  Format = "hosts"  // hosts(5)
	Groups Format = "groups" // ClusterShell: groups.d/*.yaml, or "group: nodes" on each line
)

// Formats are all of them.
var Formats = []Format{CSV, JSON, Hosts, Groups}

// FormatOf tells a file's format by its name; empty where the name does not.
func FormatOf(file string) Format {
	base := strings.ToLower(path.Base(file))
	switch ext := path.Ext(base); {
	case ext == ".csv" || ext == ".tsv":
		return CSV
	case ext == ".json":
		return JSON
	case base == "hosts" || ext == ".hosts":
		return Hosts
	case ext == ".yaml" || ext == ".yml" || ext == ".cfg" || base == "groups":
		return Groups
	}
	return ""
}

// Field is one thing that a file can say about a node.
type Field string

const (
	Name     Field = "name"
	MAC      Field = "mac"
	UUID     Field = "uuid"
	EK       Field = "ek"
	InGroups Field = "groups"
	DNS      Field = "dns"
	IP       Field = "ip"
)

// Entry is what a file says about one node.
type Entry struct {
	Line   int
	Name   string
	MAC    []string // lower-case, colon-separated
	UUID   string   // lower-case
	EK     string   // SHA-256 of the SPKI, lower-case hex
	Groups []string
	DNS    []string
	IP     []string
	// Has are the fields that the file speaks of, empty ones too. Of others it says nothing.
	Has []Field
}

// File is what a file says.
type File struct {
	Entries []Entry // in the order of the file; no name twice
	// Whole are the groups of which the file names every node. Of other groups an entry says only
	// whether that one node belongs to them.
	Whole []string
}

// Error is a fault of a file, and where it is.
type Error struct {
	File  string
	Line  int   // from 1
	Field Field // empty where the line as a whole is wrong
	Msg   string
}

func (e *Error) Error() string {
	if e.Field == "" {
		return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Msg)
	}
	return fmt.Sprintf("%s:%d: %s: %s", e.File, e.Line, e.Field, e.Msg)
}

// Parse reads a whole file; name is for errors, each of which is an [*Error].
func Parse(name string, format Format, data []byte) (File, error) {
	data = trimBOM(data)
	var f File
	var err *Error
	switch format {
	case CSV:
		f.Entries, err = parseCSV(data)
	case JSON:
		f.Entries, err = parseJSON(data)
	case Hosts:
		f.Entries, err = parseHosts(data)
	case Groups:
		f, err = parseGroups(data)
	default:
		err = &Error{Line: 1, Msg: fmt.Sprintf("format %q is none of %v", format, Formats)}
	}
	if err == nil {
		err = unique(f.Entries)
	}
	if err != nil {
		err.File = name
		return File{}, err
	}
	return f, nil
}

// trimBOM takes off what spreadsheets put before UTF-8.
func trimBOM(b []byte) []byte { return []byte(strings.TrimPrefix(string(b), "\ufeff")) }

// unique refuses what would belong to two nodes.
func unique(entries []Entry) *Error {
	type thing struct {
		field Field
		value string
	}
	first := map[thing]*Entry{}
	for i := range entries {
		e := &entries[i]
		things := []thing{{Name, e.Name}}
		for _, mac := range e.MAC {
			things = append(things, thing{MAC, mac})
		}
		if e.UUID != "" {
			things = append(things, thing{UUID, e.UUID})
		}
		if e.EK != "" {
			things = append(things, thing{EK, e.EK})
		}
		for _, t := range things {
			if was := first[t]; was != nil {
				return &Error{Line: e.Line, Field: t.field, Msg: fmt.Sprintf("%s stands on line %d too, for %s", t.value, was.Line, was.Name)}
			}
			first[t] = e
		}
	}
	return nil
}

// MaxName is ub-common-name (RFC 5280, appendix A).
const MaxName = 64

// MaxGroups is how many groups a node may belong to.
const MaxGroups = 64

// Limits of one entry, so that its change fits a transaction of the store.
const (
	maxMACs   = 16
	maxValues = MaxGroups // groups, DNS names or addresses of one node
	maxGroup  = 128       // bytes of a group's name
)

var (
	nodeName  = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$`)
	groupName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._:-]*[A-Za-z0-9])?$`)
	hostName  = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$`)
	uuidForm  = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
)

// set adds values, as they are written, to a field.
func (e *Entry) set(field Field, values []string) *Error {
	if !slices.Contains(e.Has, field) {
		e.Has = append(e.Has, field)
	}
	wrong := func(format string, args ...any) *Error {
		return &Error{Line: e.Line, Field: field, Msg: fmt.Sprintf(format, args...)}
	}
	if len(values) > 1 && (field == Name || field == UUID || field == EK) {
		return wrong("%d values, where a node has one", len(values))
	}
	for _, text := range values {
		value, msg := field.read(text)
		if msg != "" {
			return wrong("%.80q %s", text, msg)
		}
		switch field {
		case Name:
			e.Name = value
		case MAC:
			e.MAC = append(e.MAC, value)
		case UUID:
			e.UUID = value
		case EK:
			e.EK = value
		case InGroups:
			e.Groups = append(e.Groups, value)
		case DNS:
			e.DNS = append(e.DNS, value)
		case IP:
			e.IP = append(e.IP, value)
		}
	}
	for _, list := range []*[]string{&e.MAC, &e.Groups, &e.DNS, &e.IP} {
		most := maxValues
		if field == MAC {
			most = maxMACs
		}
		if *list = distinct(*list); len(*list) > most {
			return wrong("%d values, more than %d", len(*list), most)
		}
	}
	return nil
}

// read returns a value in its one spelling, or what is wrong with it.
func (f Field) read(text string) (value, msg string) {
	ok := false
	switch f {
	case Name:
		value, msg = checkName(text)
		return value, msg
	case MAC:
		value, ok = ReadMAC(text)
		msg = "is not a MAC address"
	case UUID:
		value, ok = ReadUUID(text)
		msg = "is not the UUID of a machine"
	case EK:
		value, ok = readEK(text)
		msg = "is not a SHA-256 in hex"
	case InGroups:
		value, ok = text, CheckGroup(text)
		msg = "is not a group's name"
	case DNS:
		value, ok = text, IsHostName(text)
		msg = "is not a DNS name"
	case IP:
		value, ok = ReadIP(text)
		msg = "is not an IP address"
	}
	if ok {
		return value, ""
	}
	return "", msg
}

func checkName(text string) (string, string) {
	switch {
	case text == "":
		return "", "is no name"
	case len(text) > MaxName:
		return "", fmt.Sprintf("cannot be a node's name: a certificate's common name has at most %d characters", MaxName)
	case !IsNodeName(text):
		return "", "cannot be a node's name"
	}
	// Selectors take these for what they look like.
	_, ip := ReadIP(text)
	_, uuid := ReadUUID(text)
	_, mac := ReadMAC(text)
	if ip || uuid || mac {
		return "", "is an address, not a name"
	}
	return text, ""
}

// IsNodeName says whether a name of at most MaxName characters is made as a node's must be.
func IsNodeName(name string) bool { return nodeName.MatchString(name) }

// IsHostName says whether a name is one that DNS takes (RFC 1123, 2.1).
func IsHostName(name string) bool { return len(name) <= 253 && hostName.MatchString(name) }

// CheckGroup says whether a group can be called so.
func CheckGroup(name string) bool {
	return len(name) <= maxGroup && groupName.MatchString(name)
}

// ReadMAC takes the spellings of net.ParseMAC for Ethernet and InfiniBand, and returns the one of
// [wire.Hints]. An address that is all zeros or ones is none.
func ReadMAC(text string) (string, bool) {
	hw, err := net.ParseMAC(text)
	if err != nil || uniform(hw) {
		return "", false
	}
	return hw.String(), true
}

// ReadUUID takes a UUID in any case. What firmware has where nobody set one, all zeros or ones, is none.
func ReadUUID(text string) (string, bool) {
	text = strings.ToLower(text)
	if !uuidForm.MatchString(text) {
		return "", false
	}
	b, err := hex.DecodeString(strings.ReplaceAll(text, "-", ""))
	return text, err == nil && !uniform(b)
}

// ReadIP takes an address without a zone, in any spelling.
func ReadIP(text string) (string, bool) {
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return "", false
	}
	return a.Unmap().String(), true
}

func readEK(text string) (string, bool) {
	text = strings.TrimPrefix(strings.ToLower(text), "sha256:")
	b, err := hex.DecodeString(text)
	return text, err == nil && len(b) == 32
}

// uniform says whether all bytes are 0 or all are 255.
func uniform(b []byte) bool {
	return len(slices.Compact(slices.Clone(b))) == 1 && (b[0] == 0 || b[0] == 0xff)
}

// distinct keeps the first of equal values, in order.
func distinct(list []string) []string {
	var out []string
	for _, v := range list {
		if !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out
}
