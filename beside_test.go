package muster_test

import (
	"os"
	"os/exec"
	"regexp"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"muster/internal/testtpm"
)

// besideVerb is the judge of "nothing that is not ours is touched": tpm2-tools, which know nothing of
// Muster, say what is in the TPM before and after.
func (s *stage) besideVerb(ts *testscript.TestScript, args []string) {
	if len(args) != 2 || s.tpms[args[0]] == nil {
		ts.Fatalf("usage: beside NAME keep|same, after: tpm NAME tcp")
	}
	now := s.beside(ts, s.tpms[args[0]])
	switch args[1] {
	case "keep":
		s.held[args[0]] = now
	case "same":
		if s.held[args[0]] == "" || now != s.held[args[0]] {
			ts.Fatalf("beside what is Muster's the TPM held\n%s\nand holds\n%s", s.held[args[0]], now)
		}
	default:
		ts.Fatalf("beside: no %q", args[1])
	}
}

var (
	// ourHandles is DefaultSlots of the agent, as tpm2-tools write them.
	ourHandles = regexp.MustCompile(`(?i)^0x0?(81004E0[01]|1804E0[01])$`)
	// steady are the variable properties that no use of our own slots changes. HR_LOADED counts what
	// stays loaded, LOCKOUT_COUNTER the failed authorizations.
	steady = regexp.MustCompile(`(?ms)^TPM2_PT_(PERMANENT|STARTUP_CLEAR):.*?^TPM2_PT_|^TPM2_PT_(HR_LOADED|HR_ACTIVE|LOCKOUT_COUNTER|MAX_AUTH_FAIL|LOCKOUT_INTERVAL|LOCKOUT_RECOVERY|NV_COUNTERS): .*?$`)
)

// beside is everything in a TPM that is not in our four slots.
func (s *stage) beside(ts *testscript.TestScript, tpm *testtpm.TPM) string {
	s.t.Helper()
	testtpm.Need(s.t, "tpm2_getcap")
	tool := func(name string, args ...string) string {
		cmd := exec.Command(name, args...)
		cmd.Env = append(os.Environ(), "TPM2TOOLS_TCTI="+tpm.Spec())
		out, err := cmd.CombinedOutput()
		if err != nil {
			ts.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	var all strings.Builder
	for _, kind := range []struct{ handles, look, option string }{
		{"handles-persistent", "tpm2_readpublic", "-c"}, {"handles-nv-index", "tpm2_nvreadpublic", ""}, {"handles-transient", "", ""},
	} {
		for _, line := range strings.Split(tool("tpm2_getcap", kind.handles), "\n") {
			handle := strings.TrimPrefix(line, "- ")
			if handle == line || ourHandles.MatchString(handle) {
				continue
			}
			all.WriteString(handle + "\n")
			if kind.look != "" {
				all.WriteString(tool(kind.look, strings.Fields(kind.option+" "+handle)...))
			}
		}
	}
	properties := steady.FindAllString(tool("tpm2_getcap", "properties-variable"), -1)
	if len(properties) < 8 {
		ts.Fatalf("tpm2_getcap properties-variable shows only %q", properties)
	}
	all.WriteString(strings.Join(properties, "\n"))
	return all.String()
}
