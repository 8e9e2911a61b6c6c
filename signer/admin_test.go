package signer

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"muster/internal/wire"
	"muster/signer/store"
)

// adminSocket serves the admin verbs on a unix socket.
func (s *site) adminSocket(t *testing.T) *http.Client {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "adm") // a socket's path has at most 107 bytes
	s.must(err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", dir+"/s")
	s.must(err)
	srv := s.adminServer()
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", dir+"/s")
	}}}
}

// ask sends one request and returns all frames of the answer.
func ask(t *testing.T, c *http.Client, path, body string) (frames []Frame) {
	t.Helper()
	resp, err := c.Post("http://head"+path, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for dec := json.NewDecoder(resp.Body); dec.More(); {
		var f Frame
		if err := dec.Decode(&f); err != nil {
			t.Fatal(err)
		}
		frames = append(frames, f)
	}
	if len(frames) == 0 {
		t.Fatalf("%s: no frame", path)
	}
	return frames
}

func last(frames []Frame) Frame { return frames[len(frames)-1] }

func TestAdminSocket(t *testing.T) {
	s, k := newSite(t), aChip(t).nodeKey()
	c := s.adminSocket(t)
	changed := last(ask(t, c, AdminEnable, `{"ids":["n[0-149]"],"for":3600000000000}`))
	if changed.Error != nil || !bytes.Contains(changed.Result, []byte(`"nodes":"n[0-149]"`)) {
		t.Fatalf("enable: %+v %s", changed.Error, changed.Result)
	}
	s.enrol(k, "n0")
	listed := ask(t, c, AdminList, `{"ids":["n[0-1]"]}`)
	if len(listed) != 3 || !bytes.Contains(listed[0].Item, []byte(`"state":"issued"`)) || string(last(listed).Result) != `{"count":2}` {
		t.Errorf("list: %d frames", len(listed))
	}
	if ca := last(ask(t, c, AdminCA, `{}`)); !bytes.Contains(ca.Result, []byte(s.Pin())) {
		t.Errorf("ca: %s", ca.Result)
	}
	log := ask(t, c, AdminLog, `{"ids":["n0"],"since":"2000-01-01T00:00:00Z"}`)
	if len(log) != 3 || !bytes.Contains(log[0].Item, []byte(fmt.Sprintf("uid %d pid %d", os.Getuid(), os.Getpid()))) {
		t.Errorf("log: %d frames, the first %s", len(log), log[0].Item)
	}
	for name, test := range map[string]struct {
		path, body string
		want       ErrorKind
	}{
		"unknown field":   {AdminEnable, `{"ids":["n0"],"for":1,"force":true}`, KindUsage},
		"unknown node":    {AdminDisable, `{"ids":["n0,n999"]}`, KindNone},
		"nonsense":        {AdminEnable, `{"ids":["n[0-"],"for":1}`, KindUsage},
		"unknown in list": {AdminList, `{"ids":["n999"]}`, KindNone},
		"why of many":     {AdminWhy, `{"id":"n[0-9]"}`, KindUsage},
		"why of nobody":   {AdminWhy, `{"id":"x9"}`, KindNone},
		"not JSON":        {AdminList, `x`, KindUsage},
	} {
		if got := last(ask(t, c, test.path, test.body)).Error; got == nil || got.Kind != test.want {
			t.Errorf("%s: got %+v", name, got)
		}
	}
	if s.record("n0").Disabled {
		t.Error("a command that was refused has changed something")
	}
	s.must(s.store.Close())
	if got := last(ask(t, c, AdminDisable, `{"all":true}`)).Error; got == nil || got.Kind != KindStore {
		t.Errorf("without a store: got %+v", got)
	}
}

// TestAdminIsNotOnTheNetwork: no listener but the socket has the admin's paths (Keylime CVE-2026-1709).
func TestAdminIsNotOnTheNetwork(t *testing.T) {
	s := newSite(t)
	for _, path := range []string{AdminEnable, AdminDisable, AdminList, AdminWhy, AdminLog, AdminCA} {
		for name, handler := range map[string]http.Handler{"node": s.NodeHandler(), "public": s.PublicHandler()} {
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, httptest.NewRequest(http.MethodPost, path, strings.NewReader(`{}`)))
			equal(t, path+" for "+name, w.Code, http.StatusNotFound)
		}
	}
}

func (s *site) why(name string) WhyView {
	s.t.Helper()
	v, err := s.adminWhy(context.Background(), WhyRequest{ID: name}, noStream())
	s.must(err)
	return v.(WhyView)
}

// TestWhy: what the administrator is told is what happened.
func TestWhy(t *testing.T) {
	s, k, stranger := newSite(t), aChip(t).nodeKey(), aChip(t).nodeKey()
	says := func(name, sentence string) {
		t.Helper()
		if got := s.why(name).Sentence; !strings.Contains(got, sentence) {
			t.Errorf("got %q, want %q in it", got, sentence)
		}
	}
	s.post(wire.PathChallenge, k.ChallengeRequest("n0"))
	says("n0", "is not known")
	s.enable("n0")
	says("n0", "may enrol until")
	cert := certificate(t, s.enrol(k, "n0").Cert)
	says("n0", "has not used it yet")
	use(s.Head, cert)
	says("n0", "is well")
	s.post(wire.PathChallenge, stranger.ChallengeRequest("n0"))
	says("n0", "another TPM (EK "+stranger.ekHash())
	s.post(wire.PathEnroll, s.answered(k.chip.nodeKey(), "n0"))
	says("n0", "with another key than the one on record")
	s.enable("n1")
	s.disable("n1")
	says("n1", "was disabled")
	s.post(wire.PathChallenge, stranger.ChallengeRequest("n1"))
	says("n1", "disabled")
	s.enrol(k, "n0")
	s.clock.move(nodeLife)
	says("n0", "was over on")
}

// TestEveryReasonHasASentence for a node of the record, with a way out where there is one.
func TestEveryReasonHasASentence(t *testing.T) {
	s := &slot{Node: "n0", Grant: &grant{Used: true, Until: noon}, EK: "e", Pending: &Candidate{EK: "p"}}
	for _, why := range []reason{
		whyForm, whyNotEnabled, whyWindowOver, whyDisabled, whyOtherTPM, whyOtherKey, whyEKTaken, whyKeyTaken, whyLevel,
		whyStale, whyNotOnRecord, whyStore, whyClock, whySigning, whyOverload, whyTooLarge, whyCSR, whyExpired, whyTooSoon,
		whyAnother, whyReplaced, whyVendor,
	} {
		sentence, _, ok := explainRefusal(s, &sighting{Reason: why, Addr: "10.0.0.1", At: noon, Count: 2}, noon.Add(time.Minute))
		if !ok || !strings.Contains(sentence, "n0") || !strings.Contains(sentence, "10.0.0.1") {
			t.Errorf("%s: %q", why, sentence)
		}
	}
}

// TestLogOfADamagedJournal: the administrator is told, not shown a part as the whole.
func TestLogOfADamagedJournal(t *testing.T) {
	s := newSite(t)
	s.wrap = func(st store.Store) store.Store { return &tornJournal{st} }
	s.open()
	if _, err := s.adminLog(context.Background(), LogRequest{}, noStream()); err == nil {
		t.Error("no error")
	}
}

// tornJournal is a store whose journal's first entry is damaged.
type tornJournal struct{ store.Store }

func (j *tornJournal) Journal(ctx context.Context, from uint64) iter.Seq2[store.Entry, error] {
	return func(yield func(store.Entry, error) bool) {
		if !yield(store.Entry{Seq: from}, fmt.Errorf("entry: %w", store.ErrDamaged)) {
			return
		}
		for e, err := range j.Store.Journal(ctx, from+1) {
			if !yield(e, err) {
				return
			}
		}
	}
}
