package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"muster/signer"
	"muster/signer/store/bolt"
)

// roleCrowd is the argument that makes the test binary the load generator, so that a profile of the
// test is one of the head alone: crowd ADDRESS N C.
const roleCrowd = "crowd"

func TestMain(m *testing.M) {
	if len(os.Args) == 5 && os.Args[1] == roleCrowd {
		if err := generate(os.Args[2], os.Args[3], os.Args[4]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// generate makes n nodes, says so, waits for a line, and enrols them, c at a time.
func generate(addr, n, c string) error {
	count, err := strconv.Atoi(n)
	if err != nil {
		return err
	}
	atOnce, err := strconv.Atoi(c)
	if err != nil {
		return err
	}
	nodes, err := new(bench).made(count)
	if err != nil {
		return err
	}
	fmt.Println("made")
	if _, err := fmt.Scanln(new(string)); err != nil {
		return err
	}
	return load(context.Background(), atOnce, nodes, func(n *node) error { return n.enrol(addr, nil) })
}

// BenchmarkHead runs the head in this process, for profiles: go test -run - -bench Head/c=64 -benchtime
// 5000x -cpuprofile FILE -memprofile FILE ./internal/bench. Its times are not comparable with the
// bench's figures.
func BenchmarkHead(b *testing.B) {
	for _, c := range []int{1, 64} {
		b.Run(fmt.Sprint("c=", c), func(b *testing.B) { benchmarkHead(b, c) })
	}
}

func benchmarkHead(b *testing.B, c int) {
	addr, socket := headHere(b)
	enableHere(b, socket, b.N)
	crowd, err := startChild(b.Context(), roleCrowd, addr, strconv.Itoa(b.N), strconv.Itoa(c))
	if err != nil {
		b.Fatal(err)
	}
	if _, err := crowd.out.ReadString('\n'); err != nil {
		b.Fatal(err)
	}
	before := ownCPU() // the crowd's is not in it
	b.ReportAllocs()
	b.ResetTimer()
	fmt.Fprintln(crowd.in, "go")
	err = crowd.cmd.Wait()
	b.StopTimer()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(ownCPU()-before)/float64(time.Microsecond)/float64(b.N), "cpu-µs/op")
}

func headHere(b *testing.B) (addr, socket string) {
	dir, err := os.MkdirTemp("", "mb")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	ctx := b.Context()
	path := filepath.Join(dir, "store.db")
	if err := bolt.Create(path, "bench"); err != nil {
		b.Fatal(err)
	}
	st, err := bolt.Open(path, time.Second)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := signer.Init(ctx, dir, st, signer.Plan{Cluster: "bench", Hosts: []string{"127.0.0.1"}}, time.Now()); err != nil {
		b.Fatal(err)
	}
	head, err := signer.Open(ctx, signer.Config{Dir: dir, Store: st})
	if err != nil {
		b.Fatal(err)
	}
	node, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	socket = filepath.Join(dir, "s")
	admin, err := net.Listen("unix", socket)
	if err != nil {
		b.Fatal(err)
	}
	ended := make(chan error)
	go func() {
		ended <- head.Serve(ctx, signer.Listeners{Node: []net.Listener{node}, Admin: []net.Listener{admin}})
	}()
	b.Cleanup(func() { <-ended; st.Close() }) // b.Context ends before
	return node.Addr().String(), socket
}

func enableHere(b *testing.B, socket string, n int) {
	client := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", socket)
	}}}
	defer client.CloseIdleConnections()
	req, err := json.Marshal(signer.EnableRequest{IDs: []string{fmt.Sprintf("n[0-%d]", n-1)}, For: time.Hour, Level: "tofu"})
	if err != nil {
		b.Fatal(err)
	}
	rsp, err := client.Post("http://muster"+signer.AdminEnable, "application/json", bytes.NewReader(req))
	if err != nil {
		b.Fatal(err)
	}
	defer rsp.Body.Close()
	out, err := io.ReadAll(rsp.Body)
	if err != nil || !bytes.Contains(out, []byte(`"result"`)) {
		b.Fatalf("enable: %v: %s", err, out)
	}
}
