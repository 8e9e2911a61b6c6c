package vm

import (
	"cmp"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
)

// NetBoot is a web server that iPXE boots from.
type NetBoot struct {
	Script string // boot.ipxe, as we ship it
	Kernel string
	Image  string
	Head   *Head
	Words  string            // on the kernel command line, beside the head's
	Files  map[string]string // others to serve, by their path
	Listen string            // address and port; empty: a free one of the loopback's
	Asked  func(path string) // told of each request; may be nil

	server *http.Server
	url    string
}

// Start serves until Stop, and returns the options for the NIC of a node that is to boot from
// there. The script's settings and image become this cluster's, as an administrator writes them.
func (n *NetBoot) Start() (nic string, err error) {
	l, err := net.Listen("tcp", cmp.Or(n.Listen, "127.0.0.1:0"))
	if err != nil {
		return "", err
	}
	n.url = strings.Replace("http://"+l.Addr().String(), "127.0.0.1", HostAddr, 1)
	files := http.NewServeMux()
	files.HandleFunc("/boot.ipxe", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, n.script()) })
	files.HandleFunc("/vmlinuz", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, n.Kernel) })
	files.HandleFunc("/"+filepath.Base(n.Image), func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, n.Image) })
	for path, file := range n.Files {
		files.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, file) })
	}
	n.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n.Asked != nil {
			n.Asked(r.URL.Path)
		}
		files.ServeHTTP(w, r)
	})}
	go n.server.Serve(l)
	return "bootfile=" + n.url + "/boot.ipxe", nil
}

// Stop ends the server.
func (n *NetBoot) Stop() { n.server.Close() }

var setting = regexp.MustCompile(`(?m)^set (\w+) .*$`)

func (n *NetBoot) script() string {
	settings := map[string]string{"base": n.url, "head": n.Head.URL(), "pin": n.Head.Pin, "root": n.Words}
	named := strings.ReplaceAll(n.Script, "muster.cpio.xz", filepath.Base(n.Image))
	return setting.ReplaceAllStringFunc(named, func(line string) string {
		name := strings.Fields(line)[1]
		return "set " + name + " " + settings[name]
	})
}
