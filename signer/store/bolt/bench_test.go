package bolt

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"muster/signer/store"
)

// BenchmarkCommit is one enrolment's record: a grant is changed, a 600-byte certificate stored under
// a random serial or beside its node's record, one event. "busy" writers come through a common bottleneck of 0.8 ms each, as the requests
// of a live server come through its CPU.
func BenchmarkCommit(b *testing.B) {
	for _, key := range []string{"serial", "node"} {
		for _, busy := range []bool{false, true} {
			for _, writers := range []int{1, 64, 1000} {
				b.Run(fmt.Sprintf("key=%s/busy=%t/writers=%d", key, busy, writers), func(b *testing.B) {
					benchmarkCommit(b, writers, busy, key == "serial")
				})
			}
		}
	}
}

func benchmarkCommit(b *testing.B, writers int, busy, bySerial bool) {
	s := newStore(b)
	for i := range 1000 {
		commit(b, s, store.Tx{Puts: []store.Put{put(fmt.Sprintf("node/n%d", i), string(make([]byte, 200)))}})
	}
	var cpu sync.Mutex
	var n atomic.Int64
	before, disk := s.Stats(), written(b)
	var wg sync.WaitGroup
	b.ResetTimer()
	for range writers {
		wg.Go(func() {
			for i := n.Add(1); i <= int64(b.N); i = n.Add(1) {
				if busy {
					cpu.Lock()
					for start := time.Now(); time.Since(start) < 800*time.Microsecond; {
					}
					cpu.Unlock()
				}
				cert := fmt.Sprintf("node/n%d/cert", i%1000)
				if bySerial {
					cert = fmt.Sprintf("cert/%016x%016x", rand.Uint64(), rand.Uint64())
				}
				commit(b, s, store.Tx{
					Puts: []store.Put{
						{Key: fmt.Sprintf("node/n%d", i%1000), Value: make([]byte, 200)},
						{Key: cert, Value: make([]byte, 600)},
					},
					Events: []store.Event{{Time: time.Now(), Kind: "issue", Node: fmt.Sprint("n", i%1000), Fields: map[string]string{"serial": "0123456789abcdef0123456789abcdef"}}},
				})
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	st := s.Stats()
	per := func(x uint64) float64 { return float64(x) / float64(st.Commits-before.Commits) }
	b.ReportMetric(per(st.Syncs-before.Syncs), "syncs/op")
	b.ReportMetric(per(st.Bytes-before.Bytes), "bytes/op")
	b.ReportMetric(per(written(b)-disk), "disk-bytes/op")
}

// written is what the kernel says this process has caused to be written.
func written(b *testing.B) uint64 {
	data, err := os.ReadFile("/proc/self/io")
	if err != nil {
		return 0
	}
	_, rest, _ := bytes.Cut(data, []byte("\nwrite_bytes: "))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	n, err := strconv.ParseUint(string(line), 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return n
}
