package signer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"muster/signer/store"
)

// Paths of the admin socket: HTTP on a unix socket, for the head's own command line only. Each
// answer is a stream of Frames, one JSON value a line; the last has Result or Error.
const (
	AdminEnable  = "/admin/enable"
	AdminDisable = "/admin/disable"
	AdminList    = "/admin/list"
	AdminWhy     = "/admin/why"
	AdminLog     = "/admin/log"
	AdminCA      = "/admin/ca"
	AdminRevoke  = "/admin/revoke"
	AdminRotate  = "/admin/rotate"
	AdminHost    = "/admin/host"
	AdminBackup  = "/admin/backup"
	AdminClock   = "/admin/clock/accept"
	AdminStatus  = "/admin/status"
	AdminApprove = "/admin/approve"
	AdminReplace = "/admin/replace"

	AdminImport = "/admin/nodes/import"
	AdminGroups = "/admin/nodes/groups"
	AdminGroup  = "/admin/nodes/group"
	AdminRemove = "/admin/nodes/remove"
)

// Frame is one line of an answer.
type Frame struct {
	Done   int             `json:"done,omitempty"` // of Total, for a progress bar
	Total  int             `json:"total,omitempty"`
	Item   json.RawMessage `json:"item,omitempty"` // one of a listing
	Result json.RawMessage `json:"result,omitempty"`
	Error  *AdminError     `json:"error,omitempty"`
}

// AdminError is what the administrator did wrong or cannot have, with the way out.
type AdminError struct {
	Kind    ErrorKind `json:"kind"`
	Message string    `json:"message"`
	Hint    string    `json:"hint,omitempty"`
}

func (e *AdminError) Error() string { return e.Message }

// ErrorKind tells the exit status of the command line.
type ErrorKind string

const (
	KindFailed ErrorKind = "failed"
	KindUsage  ErrorKind = "usage"  // what was written makes no sense
	KindNone   ErrorKind = "none"   // it names nothing that there is
	KindStore  ErrorKind = "store"  // the store cannot be reached, or cannot write
	KindPolicy ErrorKind = "policy" // it may not be
	KindPartly ErrorKind = "partly" // some of it is done
)

func adminError(kind ErrorKind, hint, format string, args ...any) *AdminError {
	return &AdminError{Kind: kind, Hint: hint, Message: fmt.Sprintf(format, args...)}
}

// stream writes the frames of one answer.
type stream struct {
	enc  *json.Encoder
	ctrl *http.ResponseController
}

// patience is how long a peer may leave an answer unread, a person in a pager say, before it is cut: a
// listing holds on to an old state of the store, which grows meanwhile.
const patience = 5 * time.Minute

func (s *stream) progress(done, total int) {
	s.ctrl.SetWriteDeadline(time.Now().Add(patience))
	s.enc.Encode(Frame{Done: done, Total: total})
	s.ctrl.Flush()
}

func (s *stream) item(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	s.ctrl.SetWriteDeadline(time.Now().Add(patience))
	return s.enc.Encode(Frame{Item: b})
}

// flush sends what was written so far.
func (s *stream) flush() error { return s.ctrl.Flush() }

// adminCall is one verb: it may stream progress and items, and ends in a result or an error.
type adminCall[T any] func(ctx context.Context, req T, out *stream) (any, error)

func (h *Head) adminServer() *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+AdminEnable, serveAdmin(h.adminEnable))
	mux.HandleFunc("POST "+AdminDisable, serveAdmin(h.adminDisable))
	mux.HandleFunc("POST "+AdminList, serveAdmin(h.adminList))
	mux.HandleFunc("POST "+AdminWhy, serveAdmin(h.adminWhy))
	mux.HandleFunc("POST "+AdminLog, serveAdmin(h.adminLog))
	mux.HandleFunc("POST "+AdminCA, serveAdmin(h.adminCA))
	mux.HandleFunc("POST "+AdminRevoke, serveAdmin(h.adminRevoke))
	mux.HandleFunc("POST "+AdminRotate, serveAdmin(h.adminRotate))
	mux.HandleFunc("POST "+AdminHost, serveAdmin(h.adminHost))
	mux.HandleFunc("POST "+AdminImport, serveAdmin(h.adminImport))
	mux.HandleFunc("POST "+AdminGroups, serveAdmin(h.adminGroups))
	mux.HandleFunc("POST "+AdminGroup, serveAdmin(h.adminGroup))
	mux.HandleFunc("POST "+AdminRemove, serveAdmin(h.adminRemove))
	mux.HandleFunc("POST "+AdminBackup, serveAdmin(h.adminBackup))
	mux.HandleFunc("POST "+AdminClock, serveAdmin(h.adminClockAccept))
	mux.HandleFunc("POST "+AdminStatus, serveAdmin(h.adminStatus))
	mux.HandleFunc("POST "+AdminApprove, serveAdmin(h.adminApprove))
	mux.HandleFunc("POST "+AdminReplace, serveAdmin(h.adminReplace))
	srv := newServer(mux, h.log)
	srv.WriteTimeout = 0 // a long listing, or a change of many nodes
	srv.ConnContext = withPeer
	return srv
}

func serveAdmin[T any](call adminCall[T]) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		out := &stream{json.NewEncoder(w), http.NewResponseController(w)}
		var req T
		dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<20))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&req); err != nil {
			out.enc.Encode(Frame{Error: adminError(KindUsage, "use the muster command of the same release as the daemon", "request: %v", err)})
			return
		}
		out.ctrl.Flush() // somebody is there: the answer itself may take long
		result, err := call(r.Context(), req, out)
		if err != nil {
			out.enc.Encode(Frame{Error: asAdminError(err)})
			return
		}
		b, err := json.Marshal(result)
		if err != nil {
			panic("signer: " + err.Error())
		}
		out.enc.Encode(Frame{Result: b})
	}
}

func asAdminError(err error) *AdminError {
	var e *AdminError
	if errors.As(err, &e) {
		return e
	}
	if errors.Is(err, store.ErrDamaged) {
		return adminError(KindStore, "the node is refused until the store is restored; look at the disk", "%v", err)
	}
	return adminError(KindStore, "journalctl -u muster", "%v", err)
}

type peerKey struct{}

// peerID is who is at the other end of the admin socket.
type peerID struct {
	name  string
	uid   int
	known bool
}

// withPeer notes who is at the other end of the admin socket (SO_PEERCRED), for the journal.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	var who peerID
	if u, ok := c.(*net.UnixConn); ok {
		if raw, err := u.SyscallConn(); err == nil {
			raw.Control(func(fd uintptr) {
				if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
					who = peerID{fmt.Sprintf("uid %d pid %d", cred.Uid, cred.Pid), int(cred.Uid), true}
				}
			})
		}
	}
	return context.WithValue(ctx, peerKey{}, who)
}

// byWhom is who asked for a change, for the journal.
func byWhom(ctx context.Context) string {
	who, _ := ctx.Value(peerKey{}).(peerID)
	if !who.known {
		return "unknown"
	}
	return who.name
}

// ownsState says that a call comes from root or from the daemon's own user, who can read its files anyway.
// Others at the socket are of the group muster only.
func ownsState(ctx context.Context) bool {
	who, _ := ctx.Value(peerKey{}).(peerID)
	return who.known && (who.uid == 0 || who.uid == os.Geteuid())
}

// CAView is `muster ca show`.
type CAView struct {
	Schema  string    `json:"schema"`
	Pin     string    `json:"pin"`
	Cert    string    `json:"cert"` // PEM
	Subject string    `json:"subject"`
	Expires time.Time `json:"expires"`
	CRL     string    `json:"crl"`               // URL
	OCSP    string    `json:"ocsp"`              // URL, for all CAs
	CAs     []CAState `json:"cas"`               // all of them, the newest first
	Waiting string    `json:"waiting,omitempty"` // nodes that have not acknowledged the newest, folded
}

// CAState is one CA of several.
type CAState struct {
	ID           string    `json:"id"`
	Role         string    `json:"role"` // active, next, retired, over, dead, burnt
	Pin          string    `json:"pin"`
	Since        time.Time `json:"since"`
	Expires      time.Time `json:"expires"`
	Certificates int       `json:"certificates"` // that are good by their dates, and were not ended one by one
}

func (h *Head) adminCA(ctx context.Context, _ struct{}, _ *stream) (any, error) {
	ca, r, now := h.ca(), h.ring.Load(), h.now()
	view := CAView{
		Schema: "muster.ca/v1", Pin: ca.pin(), Cert: r.bundle(), Subject: ca.cert.Subject.String(),
		Expires: ca.cert.NotAfter.UTC(), CRL: h.crlURL(ca), OCSP: h.publicURL + pathOCSP,
	}
	for _, a := range r.members {
		use, err := h.usage(ctx, a, now)
		if err != nil {
			return nil, err
		}
		view.CAs = append(view.CAs, CAState{
			ID: a.id(), Role: string(a.role), Pin: a.pin(), Since: a.since.Truncate(time.Second), Expires: a.cert.NotAfter.UTC(), Certificates: use.good,
		})
	}
	if r.byRole(roleNext) == nil {
		return view, nil
	}
	waiting, err := h.unacknowledged(ctx, r.newest(), now)
	view.Waiting = fold(waiting)
	return view, err
}
