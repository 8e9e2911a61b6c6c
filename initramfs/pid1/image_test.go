package pid1

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"testing"
	"testing/synctest"
	"time"
)

// TestDrip: a server that sends a byte from time to time does not keep the node.
func TestDrip(t *testing.T) {
	const enough = 4000 // the server ends there where nobody breaks it off
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for range enough {
			if _, err := w.Write([]byte("x")); err != nil || r.Context().Err() != nil {
				return
			}
			w.(http.Flusher).Flush()
			time.Sleep(time.Millisecond)
		}
	}))
	defer server.Close()
	get := func(ctx context.Context, w io.Writer) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL, nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		_, err = io.Copy(w, resp.Body)
		return err
	}
	size, err := pace{enough, 50 * time.Millisecond}.keep(get, io.Discard, func(int64) { t.Error("it is told as progress") })
	if !errors.Is(err, errSlow) || size >= enough {
		t.Errorf("%d bytes, %v", size, err)
	}
}

// TestPace: what comes in each window, by a clock of the test's.
func TestPace(t *testing.T) {
	const wait = 50 * time.Second
	for name, c := range map[string]struct {
		pieces []int // one every thirty seconds, after a wait for the first
		want   error
		said   []int64
	}{
		"fast":         {[]int{100}, nil, nil},
		"slow enough":  {[]int{5, 5, 5, 5, 5, 5}, nil, []int64{10, 20, 30}},
		"too slow":     {[]int{5, 5, 5, 4, 5, 5, 5}, errSlow, []int64{10}},
		"comes to end": {[]int{100, 0, 0, 0}, errSlow, []int64{100}},
		"never":        {[]int{0, 0, 0, 0}, errSlow, nil},
	} {
		synctest.Test(t, func(t *testing.T) {
			var said []int64
			get := func(ctx context.Context, w io.Writer) error {
				pause(ctx, wait)
				for _, size := range c.pieces {
					if size > 0 {
						w.Write(make([]byte, size))
					}
					pause(ctx, 30*time.Second+1)
				}
				return ctx.Err()
			}
			size, err := pace{10, time.Minute}.keep(get, io.Discard, func(bytes int64) { said = append(said, bytes) })
			if err != c.want || !reflect.DeepEqual(said, c.said) {
				t.Errorf("%s: %d bytes, %v, said %v", name, size, err, said)
			}
		})
	}
}
