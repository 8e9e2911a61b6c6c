package inventory

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// parseJSON takes a list of objects, or an object that has one in "nodes", as `muster nodes list
// --json` prints. A value is a string, a list of strings, or null.
func parseJSON(data []byte) ([]Entry, *Error) {
	r := &jsonReader{data: data, dec: json.NewDecoder(bytes.NewReader(data)), line: 1}
	entries, bad := r.file()
	if bad != nil {
		return nil, bad
	}
	if _, err := r.dec.Token(); !errors.Is(err, io.EOF) {
		return nil, r.wrong("more after the end of the list")
	}
	return entries, nil
}

// jsonReader counts lines, which encoding/json does not.
type jsonReader struct {
	data    []byte
	dec     *json.Decoder
	counted int64 // bytes of data whose ends of lines are in line
	line    int
}

// at is the line of the value that is read next.
func (r *jsonReader) at() int {
	next := r.dec.InputOffset()
	for next < int64(len(r.data)) && bytes.IndexByte([]byte(" \t\r\n,:"), r.data[next]) >= 0 {
		next++
	}
	r.line += bytes.Count(r.data[r.counted:next], []byte("\n"))
	r.counted = next
	return r.line
}

func (r *jsonReader) wrong(format string, args ...any) *Error {
	return &Error{Line: r.at(), Msg: fmt.Sprintf(format, args...)}
}

// broken is about what encoding/json refused to read.
func (r *jsonReader) broken(err error) *Error {
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		// Between values its offset is before the blanks.
		at := min(max(syntax.Offset-1, 0), int64(len(r.data)))
		return &Error{Line: max(r.at(), 1+bytes.Count(r.data[:at], []byte("\n"))), Msg: syntax.Error()}
	}
	return &Error{Line: 1 + bytes.Count(r.data, []byte("\n")), Msg: "the file ends too early"}
}

// open steps into the list or object that must come next.
func (r *jsonReader) open(want ...json.Delim) (json.Delim, *Error) {
	line := r.at()
	token, err := r.dec.Token()
	if err != nil {
		return 0, r.broken(err)
	}
	got, ok := token.(json.Delim)
	if !ok || !slices.Contains(want, got) {
		return 0, &Error{Line: line, Msg: fmt.Sprintf("%v where %v should be", token, want[0])}
	}
	return got, nil
}

// each calls one for each member of the list or object that was opened, and steps out of it.
func (r *jsonReader) each(one func() *Error) *Error {
	for r.dec.More() {
		if bad := one(); bad != nil {
			return bad
		}
	}
	if _, err := r.dec.Token(); err != nil {
		return r.broken(err)
	}
	return nil
}

func (r *jsonReader) key() (string, *Error) {
	token, err := r.dec.Token()
	if err != nil {
		return "", r.broken(err)
	}
	return token.(string), nil // encoding/json takes nothing else for a key
}

func (r *jsonReader) file() (entries []Entry, bad *Error) {
	list := func() *Error {
		return r.each(func() *Error {
			e, bad := r.entry()
			entries = append(entries, e)
			return bad
		})
	}
	first, bad := r.open('[', '{')
	if bad != nil {
		return nil, bad
	}
	if first == '[' {
		return entries, list()
	}
	found := false
	bad = r.each(func() *Error {
		key, bad := r.key()
		switch {
		case bad != nil:
			return bad
		case key == "nodes" && !found:
			found = true
			if _, bad := r.open('['); bad != nil {
				return bad
			}
			return list()
		case key == "schema":
			_, bad := r.values()
			return bad
		}
		return r.wrong("%.80q beside the list of nodes is not known", key)
	})
	if bad == nil && !found {
		bad = r.wrong(`no list of nodes: neither [{"name": …}] nor {"nodes": [{"name": …}]}`)
	}
	return entries, bad
}

func (r *jsonReader) entry() (Entry, *Error) {
	e := Entry{Line: r.at()}
	if _, bad := r.open('{'); bad != nil {
		return e, bad
	}
	bad := r.each(func() *Error {
		key, bad := r.key()
		if bad != nil {
			return bad
		}
		field, ok := columns[strings.ToLower(key)]
		if !ok && !slices.Contains(readOver, key) {
			return r.wrong("a field %.80q is not known; there are %s", key, columnsHint)
		}
		if slices.Contains(e.Has, field) {
			return r.wrong("the field %s is there twice", field)
		}
		line := r.at()
		values, bad := r.values()
		if bad != nil {
			bad.Field = field
			return bad
		}
		if !ok {
			return nil
		}
		if bad := e.set(field, values); bad != nil {
			bad.Line = line
			return bad
		}
		return nil
	})
	if bad == nil && e.Name == "" {
		bad = &Error{Line: e.Line, Field: Name, Msg: "is missing"}
	}
	return e, bad
}

// values reads a string, a list of strings, or null.
func (r *jsonReader) values() ([]string, *Error) {
	line := r.at()
	var raw json.RawMessage
	if err := r.dec.Decode(&raw); err != nil {
		return nil, r.broken(err)
	}
	var text string
	var list []string
	switch {
	case string(raw) == "null" || string(raw) == `""`:
		return nil, nil
	case raw[0] == '"' && json.Unmarshal(raw, &text) == nil:
		return []string{text}, nil
	case raw[0] == '[' && json.Unmarshal(raw, &list) == nil:
		return list, nil
	}
	return nil, &Error{Line: line, Msg: fmt.Sprintf("%.40s is neither a string nor a list of strings", raw)}
}
