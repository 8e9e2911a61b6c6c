package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"reflect"
	"strings"
	"testing"
	"time"
)

func chain(n int) []Entry {
	c := Chain{Head: "h1"}
	var all []Entry
	for i := range n {
		ev := Event{Time: time.Unix(1e9, int64(i)), Kind: "issue", Node: fmt.Sprint("n", i)}
		if i%2 == 1 {
			ev.Fields = map[string]string{"serial": "ab", "by": "root", "": ""}
		}
		all = append(all, c.Append(ev))
	}
	return all
}

func seq(all []Entry) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for _, e := range all {
			if !yield(e, nil) {
				return
			}
		}
	}
}

func TestVerify(t *testing.T) {
	if err := Verify(seq(chain(5))); err != nil {
		t.Error(err)
	}
	if err := Verify(seq(chain(5)[2:])); err != nil {
		t.Error("from the middle:", err)
	}
	if err := Verify(seq(nil)); err != nil {
		t.Error("empty:", err)
	}
	resign := func(e *Entry) { e.Hash = e.sum() }
	for name, change := range map[string]func([]Entry) []Entry{
		"time":      func(a []Entry) []Entry { a[2].Time = a[2].Time.Add(1); return a },
		"kind":      func(a []Entry) []Entry { a[2].Kind = "x"; return a },
		"node":      func(a []Entry) []Entry { a[2].Node = ""; return a },
		"node+kind": func(a []Entry) []Entry { a[2].Kind, a[2].Node = "issuen", "2"; return a },
		"field":     func(a []Entry) []Entry { a[2].Fields = map[string]string{"a": "b"}; return a },
		"head":      func(a []Entry) []Entry { a[2].Head = "h2"; resign(&a[2]); return a },
		"hash":      func(a []Entry) []Entry { a[2].Hash[0]++; return a },
		"prev":      func(a []Entry) []Entry { a[2].Prev[0]++; resign(&a[2]); return a },
		"number":    func(a []Entry) []Entry { a[2].Seq = 9; resign(&a[2]); return a },
		"missing":   func(a []Entry) []Entry { return append(a[:2], a[3:]...) },
		"twice":     func(a []Entry) []Entry { a[2] = a[1]; return a },
		"swapped":   func(a []Entry) []Entry { a[2], a[3] = a[3], a[2]; return a },
	} {
		err := Verify(seq(change(chain(5))))
		if !errors.Is(err, ErrBroken) || !strings.Contains(err.Error(), "at entry 3:") {
			t.Errorf("%s: got %v, want ErrBroken at entry 3", name, err)
		}
	}
	resigned := chain(5) // who can compute hashes must rewrite all that follows
	resigned[2].Node = "n666"
	resign(&resigned[2])
	if err := Verify(seq(resigned)); !errors.Is(err, ErrBroken) || !strings.Contains(err.Error(), "at entry 4:") {
		t.Errorf("resigned: got %v, want ErrBroken at entry 4", err)
	}
	first := chain(5)
	first[0].Prev[0]++
	resign(&first[0])
	if err := Verify(seq(first[:1])); !errors.Is(err, ErrBroken) {
		t.Errorf("a first entry that follows another: got %v", err)
	}
	if err := Verify(seq([]Entry{{}})); !errors.Is(err, ErrBroken) {
		t.Errorf("zero entry: got %v", err)
	}
}

func TestEntryRoundTrip(t *testing.T) {
	berlin := time.FixedZone("", 3600)
	c := Chain{Head: "h1"}
	for _, at := range []time.Time{{}, time.Now(), time.Unix(-5, 7), time.Date(9999, 1, 1, 0, 0, 0, 0, berlin)} {
		e := c.Append(Event{Time: at, Kind: "ü\x00", Fields: map[string]string{"b": "1", "a": ""}})
		got, err := ParseEntry(e.Marshal())
		if err != nil || !reflect.DeepEqual(got, e) || !got.Time.Equal(at) {
			t.Errorf("got %+v, %v, want %+v", got, err, e)
		}
		text, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		var back Entry
		if err := json.Unmarshal(text, &back); err != nil || !reflect.DeepEqual(back, e) {
			t.Errorf("as JSON %s: %+v, %v", text, back, err)
		}
	}
}

// A format once written must be read for ever, and its hashes must stay.
func TestEntryGolden(t *testing.T) {
	c := Chain{Head: "h1"}
	c.Append(Event{Time: time.Unix(1, 2), Kind: "init"})
	e := c.Append(Event{Time: time.Unix(3, 4), Kind: "enable", Node: "n1", Fields: map[string]string{"level": "pinned", "by": "root"}})
	const want = "6f5925db34ff2974a283aaa7efaac21b6ae2acc9a38cbce112debcd6fdf1195f" // computed by a Python script from the description at Marshal
	if got := e.Hash.String(); got != want {
		t.Errorf("hash is %s, want %s", got, want)
	}
}

func FuzzParseEntry(f *testing.F) {
	for _, e := range chain(3) {
		f.Add(e.Marshal())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := ParseEntry(b)
		if err != nil {
			if !reflect.DeepEqual(e, Entry{}) {
				t.Errorf("error %v with %+v", err, e)
			}
			return
		}
		if !bytes.Equal(e.Marshal(), b) {
			t.Errorf("parsed as %+v, which is other bytes", e)
		}
	})
}

func TestDigestText(t *testing.T) {
	var d Digest
	for _, bad := range []string{"", "ab", strings.Repeat("AB", 32), strings.Repeat("zz", 32), strings.Repeat("ab", 33)} {
		if err := d.UnmarshalText([]byte(bad)); err == nil || d != (Digest{}) {
			t.Errorf("%q was read", bad)
		}
	}
}
