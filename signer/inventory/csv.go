package inventory

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// columns are the headers that a table can have. What `muster nodes list` prints beside the inventory
// is read over, so that its output can be imported again.
var (
	columns = map[string]Field{
		"name": Name, "node": Name, "mac": MAC, "uuid": UUID, "ek": EK, "groups": InGroups, "dns": DNS, "ip": IP,
	}
	readOver = []string{"state"}
)

const columnsHint = "name, mac, uuid, ek, groups, dns, ip"

func parseCSV(data []byte) ([]Entry, *Error) {
	r := csv.NewReader(bytes.NewReader(data))
	r.Comma = separator(data)
	r.Comment = '#'
	r.TrimLeadingSpace = true
	header, err := r.Read()
	if errors.Is(err, io.EOF) {
		return nil, &Error{Line: 1, Msg: "no header: the first line names the columns, " + columnsHint}
	}
	if err != nil {
		return nil, csvError(err)
	}
	line, _ := r.FieldPos(0)
	fields, bad := readHeader(header, line)
	if bad != nil {
		return nil, bad
	}
	var entries []Entry
	for {
		row, err := r.Read()
		if errors.Is(err, io.EOF) {
			return entries, nil
		}
		if err != nil {
			return nil, csvError(err)
		}
		line, _ := r.FieldPos(0)
		e := Entry{Line: line}
		for i, field := range fields {
			if field == "" {
				continue
			}
			if bad := e.set(field, valuesOf(row[i])); bad != nil {
				return nil, bad
			}
		}
		if e.Name == "" {
			return nil, &Error{Line: line, Field: Name, Msg: "is empty"}
		}
		entries = append(entries, e)
	}
}

// separator is what the first line with words in it has most of: spreadsheets of some countries
// write semicolons.
func separator(data []byte) rune {
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		best := ','
		for _, c := range ";\t" {
			if strings.Count(line, string(c)) > strings.Count(line, string(best)) {
				best = c
			}
		}
		return best
	}
	return ','
}

// readHeader returns the field of each column; empty for one that is read over.
func readHeader(header []string, line int) ([]Field, *Error) {
	wrong := func(format string, args ...any) *Error { return &Error{Line: line, Msg: fmt.Sprintf(format, args...)} }
	var fields []Field
	for _, text := range header {
		text = strings.ToLower(strings.TrimSpace(text))
		field, ok := columns[text]
		if !ok && !slices.Contains(readOver, text) {
			return nil, wrong("a column %.80q is not known; there are %s", text, columnsHint)
		}
		if ok && slices.Contains(fields, field) {
			return nil, wrong("the column %s is there twice", field)
		}
		fields = append(fields, field)
	}
	if !slices.Contains(fields, Name) {
		return nil, wrong("no column name; the first line names the columns, %s", columnsHint)
	}
	return fields, nil
}

// valuesOf takes a cell apart: several values stand in it with blanks, commas, semicolons or bars
// between them.
func valuesOf(cell string) []string {
	return strings.FieldsFunc(cell, func(r rune) bool { return strings.ContainsRune(" \t\r\n,;|", r) })
}

func csvError(err error) *Error {
	var bad *csv.ParseError
	if !errors.As(err, &bad) {
		return &Error{Line: 1, Msg: err.Error()}
	}
	return &Error{Line: bad.Line, Msg: bad.Err.Error()}
}
