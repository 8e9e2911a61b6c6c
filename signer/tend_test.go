package signer

import (
	"testing"
	"testing/synctest"
	"time"

	"muster/signer/store"
)

// TestTendUnderLoad: while a cluster renews, each first use asks for a CRL. That signs one now and then, and looks
// through the whole store once an hour. Time is synctest's here.
func TestTendUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		s.clock.move(steadyAfter)
		f, left := s.failing(), 0
		s.clock.move(steadyAfter)
		f.after = func(tx store.Tx) {
			if puts(tx, keySteady) {
				left++
			}
		}
		go s.tend(t.Context())
		first := s.ca().publishedNumber()
		for range 100 {
			s.crlDue()
			synctest.Wait()
		}
		equal(t, "CRLs at once", s.ca().publishedNumber()-first, 1)
		time.Sleep(crlPause)
		synctest.Wait()
		equal(t, "CRLs after a pause", s.ca().publishedNumber()-first, 2)
		time.Sleep(crlPause)
		synctest.Wait()
		equal(t, "CRLs that nobody asked for", s.ca().publishedNumber()-first, 2)
		equal(t, "looks through the store", left, 1)
		s.clock.move(crlEvery)
		s.crlDue()
		synctest.Wait()
		equal(t, "looks through the store in an hour", left, 2)
	})
}

// TestTendRenews: a head swaps server certificate and responder when they are due, and not before.
func TestTendRenews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		server, responder := s.server.Load(), s.ca().responder.Load()
		go s.tend(t.Context())
		time.Sleep(time.Minute)
		synctest.Wait()
		equal(t, "swapped before it is due", s.server.Load() != server || s.ca().responder.Load() != responder, false)
		s.clock.move(headLife*2/3 + time.Second)
		time.Sleep(time.Minute)
		synctest.Wait()
		equal(t, "swapped", s.server.Load() != server && s.ca().responder.Load() != responder, true)
	})
}
