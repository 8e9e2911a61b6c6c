package bolt

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"muster/signer/store"
)

func TestCompareAndSwap(t *testing.T) {
	s := newStore(t)
	commit(t, s, store.Tx{Puts: []store.Put{put("a", "1"), put("b", "1")}})
	a, b := get(t, s, "a"), get(t, s, "b")
	if string(a.Value) != "1" || a.Revision == 0 || a.Revision != b.Revision {
		t.Fatalf("got %+v and %+v", a, b)
	}
	refused := []store.Tx{
		{Guards: []store.Guard{a.Guard(), {Key: "b"}}, Puts: []store.Put{put("a", "2"), put("c", "2")}},
		{Guards: []store.Guard{a.Guard(), {Key: "absent", Revision: 1}}, Deletes: []string{"a"}},
		{Guards: []store.Guard{{Key: "a", Revision: a.Revision + 1}}, Events: []store.Event{{Kind: "no"}}},
	}
	for i, tx := range refused {
		if err := s.Commit(t.Context(), tx); !errors.Is(err, store.ErrConflict) {
			t.Errorf("%d: got %v, want ErrConflict", i, err)
		}
	}
	if got := get(t, s, "a"); got.Revision != a.Revision || get(t, s, "c").Revision != 0 || len(entries(t, s)) != 0 {
		t.Error("a refused Tx has written")
	}
	commit(t, s, store.Tx{Guards: []store.Guard{a.Guard(), b.Guard(), {Key: "c"}}, Puts: []store.Put{put("c", "3")}, Deletes: []string{"a"}})
	if got := get(t, s, "a"); got.Revision != 0 || got.Value != nil || get(t, s, "b").Revision != b.Revision {
		t.Error("a is still there, or b was touched")
	}
	commit(t, s, store.Tx{Guards: []store.Guard{{Key: "a"}}, Puts: []store.Put{put("a", "1")}})
	if got := get(t, s, "a"); got.Revision <= a.Revision {
		t.Errorf("revision %d was used again after a delete", got.Revision)
	}
}

func TestInvalid(t *testing.T) {
	s := newStore(t)
	for name, tx := range map[string]store.Tx{
		"empty key":  {Puts: []store.Put{put("", "x")}},
		"long key":   {Deletes: []string{strings.Repeat("k", store.MaxKey+1)}},
		"not UTF-8":  {Guards: []store.Guard{{Key: "\xff"}}},
		"twice":      {Puts: []store.Put{put("a", "1")}, Deletes: []string{"a"}},
		"no kind":    {Events: []store.Event{{Node: "n1"}}},
		"too large":  {Puts: []store.Put{put("a", strings.Repeat("x", store.MaxTx))}},
		"many ops":   {Puts: make([]store.Put, store.MaxOps+1)},
		"many guard": {Guards: make([]store.Guard, store.MaxOps+1)},
	} {
		if err := s.Commit(t.Context(), tx); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", name, err)
		}
	}
	commit(t, s, store.Tx{Puts: []store.Put{put(strings.Repeat("k", store.MaxKey), strings.Repeat("x", store.MaxTx-store.MaxKey))}})
}

// Everything the store does is compared with a map.
func TestModel(t *testing.T) {
	dir := t.TempDir()
	var n int
	rapid.Check(t, func(t *rapid.T) {
		n++
		path := filepath.Join(dir, fmt.Sprint(n))
		m := &model{items: map[string]store.Item{}, seen: map[string][]uint64{}}
		s := must(t, path, Create(path, "h1"))
		defer func() { s.Close() }()
		t.Repeat(map[string]func(*rapid.T){
			"commit": func(t *rapid.T) { m.commit(t, s) },
			"reopen": func(t *rapid.T) {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				s = must(t, path, nil)
			},
			"": func(t *rapid.T) { m.compare(t, s) },
		})
	})
}

type model struct {
	items  map[string]store.Item
	seen   map[string][]uint64 // revisions that a key has had, oldest first
	events []string
}

var modelKeys = []string{"a", "a/b", "a/c", "b", "b/" + strings.Repeat("x", 300), "ü"}

func (m *model) commit(t *rapid.T, s *Store) {
	tx, holds := m.draw(t)
	err := s.Commit(context.Background(), tx)
	if !holds {
		if !errors.Is(err, store.ErrConflict) {
			t.Fatalf("got %v, want ErrConflict", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range tx.Puts {
		item, err := s.Get(context.Background(), p.Key)
		if err != nil {
			t.Fatal(err)
		}
		for _, old := range m.seen[p.Key] {
			if item.Revision <= old {
				t.Fatalf("%q: revision %d after %d", p.Key, item.Revision, old)
			}
		}
		m.seen[p.Key] = append(m.seen[p.Key], item.Revision)
		m.items[p.Key] = store.Item{Key: p.Key, Value: p.Value, Revision: item.Revision}
	}
	for _, key := range tx.Deletes {
		delete(m.items, key)
	}
	for _, e := range tx.Events {
		m.events = append(m.events, e.Kind)
	}
}

// draw makes a Tx and says whether its guards hold.
func (m *model) draw(t *rapid.T) (tx store.Tx, holds bool) {
	holds = true
	for _, key := range modelKeys {
		switch rapid.SampledFrom([]string{"put", "delete", "", ""}).Draw(t, "write") {
		case "put":
			value := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "value")
			if rapid.IntRange(0, 9).Draw(t, "big") == 0 {
				value = append(value, make([]byte, 9000)...)
			}
			tx.Puts = append(tx.Puts, store.Put{Key: key, Value: value})
		case "delete":
			tx.Deletes = append(tx.Deletes, key)
		}
		switch rapid.SampledFrom([]string{"now", "old", "", "", ""}).Draw(t, "guard") {
		case "now":
			tx.Guards = append(tx.Guards, store.Guard{Key: key, Revision: m.items[key].Revision})
		case "old":
			revision := rapid.SampledFrom(append([]uint64{0}, m.seen[key]...)).Draw(t, "revision")
			tx.Guards = append(tx.Guards, store.Guard{Key: key, Revision: revision})
			holds = holds && revision == m.items[key].Revision
		}
	}
	for i := range rapid.IntRange(0, 2).Draw(t, "events") {
		tx.Events = append(tx.Events, store.Event{Kind: fmt.Sprint("kind", i), Time: time.Unix(int64(i), 0)})
	}
	return tx, holds
}

func (m *model) compare(t *rapid.T, s *Store) {
	for _, key := range modelKeys {
		got, err := s.Get(context.Background(), key)
		want := m.items[key]
		if err != nil || got.Revision != want.Revision || string(got.Value) != string(want.Value) {
			t.Fatalf("%q: got %+v, %v, want %+v", key, got, err, want)
		}
	}
	for _, prefix := range []string{"", "a", "a/", "b/x", "ü", "zzz", "\xff"} {
		var want, got []string
		for _, key := range slices.Sorted(maps.Keys(m.items)) {
			if strings.HasPrefix(key, prefix) {
				want = append(want, fmt.Sprintf("%s %d %x", key, m.items[key].Revision, m.items[key].Value))
			}
		}
		for item, err := range s.List(context.Background(), prefix) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, fmt.Sprintf("%s %d %x", item.Key, item.Revision, item.Value))
		}
		if !slices.Equal(got, want) {
			t.Fatalf("prefix %q: got %q, want %q", prefix, got, want)
		}
	}
	var kinds []string
	for e, err := range s.Journal(context.Background(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, e.Kind)
	}
	if !slices.Equal(kinds, m.events) {
		t.Fatalf("journal has %q, want %q", kinds, m.events)
	}
	if err := store.Verify(s.Journal(context.Background(), 1)); err != nil {
		t.Fatal(err)
	}
}

// One grant, many claims: guards are checked against the state with the earlier ones of a group.
func TestOneWinner(t *testing.T) {
	s := newStore(t)
	commit(t, s, store.Tx{Puts: []store.Put{put("grant", "open")}})
	grant := get(t, s, "grant")
	var won, lost atomic.Int32
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			err := s.Commit(t.Context(), store.Tx{
				Guards: []store.Guard{grant.Guard()},
				Puts:   []store.Put{put("grant", fmt.Sprint(i)), put(fmt.Sprint("cert/", i), "x")},
				Events: []store.Event{{Kind: "claim"}},
			})
			switch {
			case err == nil:
				won.Add(1)
			case errors.Is(err, store.ErrConflict):
				lost.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 || lost.Load() != 63 || len(list(t, s, "cert/")) != 1 || len(entries(t, s)) != 1 {
		t.Errorf("%d won, %d lost, %d certificates, %d entries", won.Load(), lost.Load(), len(list(t, s, "cert/")), len(entries(t, s)))
	}
}

// Many writers share syncs, and one that is refused harms no other of its group.
func TestGroupCommit(t *testing.T) {
	s := newStore(t)
	const writers, each = 64, 20
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				tx := store.Tx{Puts: []store.Put{put(fmt.Sprintf("%d/%d", w, i), "x")}, Events: []store.Event{{Kind: "e"}}}
				if i%2 == 1 {
					tx.Guards = []store.Guard{{Key: "absent", Revision: 7}}
				}
				if err := s.Commit(t.Context(), tx); errors.Is(err, store.ErrConflict) != (i%2 == 1) || (err != nil && i%2 == 0) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	st := s.Stats()
	if st.Commits != writers*each/2 || len(list(t, s, "")) != writers*each/2 || len(entries(t, s)) != writers*each/2 {
		t.Errorf("%d commits, %d items, %d entries", st.Commits, len(list(t, s, "")), len(entries(t, s)))
	}
	if st.Groups*4 > st.Commits {
		t.Errorf("%d commits took %d groups", st.Commits, st.Groups)
	}
}

func TestCancelled(t *testing.T) {
	s := newStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Commit(ctx, store.Tx{Puts: []store.Put{put("a", "1")}}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	if _, err := s.Get(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	// Cancelled at any moment, what Commit says is what happened.
	for i := range 300 {
		key := fmt.Sprint("k", i)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			time.Sleep(time.Duration(i*7%50) * 10 * time.Microsecond)
			cancel()
		}()
		err := s.Commit(ctx, store.Tx{Puts: []store.Put{put(key, "x")}})
		commit(t, s, store.Tx{Puts: []store.Put{put("after", "x")}}) // whatever was queued is decided
		if present := get(t, s, key).Revision != 0; present != (err == nil) {
			t.Fatalf("%s: error %v, present %t", key, err, present)
		}
		cancel()
	}
}

// A request withdrawn while it waits is not applied; one that was taken is answered with its outcome.
func TestWithdraw(t *testing.T) {
	var r request
	if !r.withdraw() || r.take() {
		t.Error("a withdrawn request was taken")
	}
	r = request{}
	if !r.take() || r.withdraw() {
		t.Error("a taken request was withdrawn")
	}
}

func TestClose(t *testing.T) {
	s := newStore(t)
	var applied atomic.Int32
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			for j := 0; ; j++ {
				err := s.Commit(t.Context(), store.Tx{Puts: []store.Put{put(fmt.Sprintf("%d/%d", i, j), "x")}})
				if errors.Is(err, store.ErrClosed) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				applied.Add(1)
			}
		})
	}
	time.Sleep(20 * time.Millisecond)
	path := s.db.Path()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if _, err := s.Get(t.Context(), "0/0"); !errors.Is(err, store.ErrClosed) {
		t.Errorf("got %v, want ErrClosed", err)
	}
	if n := len(list(t, must(t, path, nil), "")); n != int(applied.Load()) {
		t.Errorf("%d acknowledged, %d there", applied.Load(), n)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "store.db")
	if _, err := Open(path, 0); !errors.Is(err, store.ErrAbsent) {
		t.Errorf("got %v, want ErrAbsent", err)
	}
	if names, _ := os.ReadDir(dir); len(names) != 0 {
		t.Errorf("opening made %v", names)
	}
	s := must(t, path, Create(path, "h1"))
	if err := Create(path, "h1"); !errors.Is(err, store.ErrExists) {
		t.Errorf("got %v, want ErrExists", err)
	}
	if _, err := Open(path, 100*time.Millisecond); !errors.Is(err, store.ErrLocked) {
		t.Errorf("got %v, want ErrLocked", err)
	}
	id := s.ID()
	s.Close()
	s = must(t, path, nil)
	if s.ID() != id || s.Head() != "h1" || len(id) != 32 {
		t.Errorf("store %s of %s, want %s of h1", s.ID(), s.Head(), id)
	}
	newer := filepath.Join(dir, "newer.db")
	if err := create(newer, newIdentity(Schema+1, "h1")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(newer, 0); !errors.Is(err, store.ErrNewer) {
		t.Errorf("got %v, want ErrNewer", err)
	}
	for name, data := range map[string]string{"empty": "", "short": "x", "text": strings.Repeat("text", 10000)} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path, 0); !errors.Is(err, store.ErrDamaged) {
			t.Errorf("%s: got %v, want ErrDamaged", name, err)
		}
		if got, _ := os.ReadFile(path); string(got) != data {
			t.Errorf("%s: opening changed the file", name)
		}
	}
}

// A read sees what is durable: not the transaction of a commit whose sync has not returned.
func TestReadIsDurable(t *testing.T) {
	s := newStore(t)
	commit(t, s, store.Tx{Puts: []store.Put{put("a", "1")}})
	tx, err := s.db.Begin(true) // as the writer does, up to the point between sync and answer
	if err != nil {
		t.Fatal(err)
	}
	next := s.snapshot.current.tail
	if refused, err := apply(tx, &next, store.Tx{Puts: []store.Put{put("a", "2")}}); refused != nil || err != nil {
		t.Fatal(refused, err)
	}
	if err := errors.Join(next.put(tx), tx.Commit()); err != nil {
		t.Fatal(err)
	}
	if got := get(t, s, "a"); string(got.Value) != "1" {
		t.Errorf("read %q before Commit was answered", got.Value)
	}
	// And a commit after somebody else's is refused, for good.
	if err := s.Commit(t.Context(), store.Tx{Puts: []store.Put{put("b", "1")}}); err == nil || errors.Is(err, store.ErrFailed) {
		t.Errorf("got %v, want the cause", err)
	}
	if err := s.Commit(t.Context(), store.Tx{Puts: []store.Put{put("b", "1")}}); !errors.Is(err, store.ErrFailed) {
		t.Errorf("got %v, want ErrFailed", err)
	}
	if got := get(t, s, "a"); string(got.Value) != "1" {
		t.Errorf("read %q from a failed store", got.Value)
	}
}

// A listing keeps its snapshot while the store moves on, and does not hold the writer up.
func TestListSnapshot(t *testing.T) {
	s := newStore(t)
	commit(t, s, store.Tx{Puts: []store.Put{put("a", "1"), put("b", "1"), put("c", "1")}})
	var seen string
	for item, err := range s.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		seen += item.Key + string(item.Value)
		for i := range 50 { // enough to outgrow bbolt's first mapping, were it not final
			commit(t, s, store.Tx{Puts: []store.Put{put("c", "2"), put(fmt.Sprint("d", seen, i), strings.Repeat("x", 10_000))}})
		}
	}
	if seen != "a1b1c1" {
		t.Errorf("saw %s", seen)
	}
}

type fataler interface {
	Helper()
	Fatal(...any)
}

// must opens the store at path unless err, that of the Create before, is set.
func must(t fataler, path string, err error) *Store {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(path, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if t, ok := t.(testing.TB); ok {
		t.Cleanup(func() { s.Close() })
	}
	return s
}

func newStore(t testing.TB) *Store {
	t.Helper()
	path := filepath.Join(t.TempDir(), "store.db")
	return must(t, path, Create(path, "h1"))
}

func put(key, value string) store.Put { return store.Put{Key: key, Value: []byte(value)} }

func commit(t testing.TB, s *Store, tx store.Tx) {
	t.Helper()
	if err := s.Commit(t.Context(), tx); err != nil {
		t.Fatal(err)
	}
}

func get(t testing.TB, s *Store, key string) store.Item {
	t.Helper()
	item, err := s.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return item
}

func list(t testing.TB, s *Store, prefix string) (items []store.Item) {
	t.Helper()
	for item, err := range s.List(t.Context(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		items = append(items, item)
	}
	return items
}

func entries(t testing.TB, s *Store) (all []store.Entry) {
	t.Helper()
	for e, err := range s.Journal(t.Context(), 1) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	return all
}
