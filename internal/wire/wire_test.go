package wire

import (
	"bytes"
	"encoding/hex"
	"os"
	"reflect"
	"strings"
	"testing"
)

func TestDecodeRefusesWhatEncodeWouldNotWrite(t *testing.T) {
	good := Encode(ChallengeRequest{V: 1, Node: "n0", EKs: []EK{{Pub: []byte{1}}}, Key: []byte{2}, CSR: []byte{3}})
	var r ChallengeRequest
	if err := Decode(good, &r); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]string{
		"unknown field":  strings.Replace(string(good), `{"v":1`, `{"v":1,"x":1`, 1),
		"twice":          strings.Replace(string(good), `{"v":1`, `{"v":2,"v":1`, 1),
		"another case":   strings.Replace(string(good), `"node"`, `"Node"`, 1),
		"white space":    strings.Replace(string(good), `{"v"`, `{ "v"`, 1),
		"trailing bytes": string(good) + "\n",
		"a second value": string(good) + string(good),
		"null":           "null",
		"nothing":        "",
	} {
		var r ChallengeRequest
		if err := Decode([]byte(bad), &r); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestTranscriptGolden pins the transcript's form: a head and a node of different releases must
// agree on it.
func TestTranscriptGolden(t *testing.T) {
	tr := Transcript{Cluster: "c", Purpose: PurposeEnroll, Grant: "g", Slot: "n0", Exp: 1, Epoch: "e",
		EKName: []byte{0, 11}, KeyName: []byte{0, 12}, Level: TOFU}
	const want = "6d75737465722d7631" + "0000000163" + "00000006656e726f6c6c" + "0000000167" + "000000026e30" +
		"000000080000000000000001" + "0000000165" +
		"00000020" + "0000000000000000000000000000000000000000000000000000000000000000" +
		"00000002000b" + "00000002000c" +
		"00000020" + "0000000000000000000000000000000000000000000000000000000000000000" +
		"00000004746f6675"
	if got := hex.EncodeToString(tr.Bytes()); got != want {
		t.Errorf("transcript\n got %s\nwant %s", got, want)
	}
}

// TestRenewalGolden pins the request for the same key, which is all that docs/protocol.md says it is.
func TestRenewalGolden(t *testing.T) {
	const want = `{"v":1}`
	if got := string(Encode(RenewRequest{V: Version})); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	doc, err := os.ReadFile("../../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(doc, []byte("POST "+PathRenew+"\n"+want+"\n")) {
		t.Error("docs/protocol.md does not have it")
	}
	// No body is a renewal of both kinds.
	if Decode([]byte(want), &EnrollRequest{}) == nil || Decode(Encode(EnrollRequest{V: Version}), &RenewRequest{}) == nil {
		t.Error("a body of one kind is one of the other, too")
	}
}

// TestTranscriptCoversEveryField: a change of any field changes secret and proof.
func TestTranscriptCoversEveryField(t *testing.T) {
	base := Transcript{}
	key := []byte("k")
	v := reflect.ValueOf(&base).Elem()
	for i := range v.NumField() {
		changed := base
		f := reflect.ValueOf(&changed).Elem().Field(i)
		switch f.Interface().(type) {
		case string:
			f.SetString("x")
		case Level:
			f.SetString("x")
		case int64:
			f.SetInt(7)
		case []byte:
			f.SetBytes([]byte{7})
		case [32]byte:
			f.Index(0).SetUint(7)
		default:
			t.Fatalf("%s: a type this test does not know", v.Type().Field(i).Name)
		}
		if bytes.Equal(changed.Secret(key), base.Secret(key)) || bytes.Equal(changed.Proof(key), base.Proof(key)) {
			t.Errorf("%s is not covered", v.Type().Field(i).Name)
		}
	}
}

func TestCheckName(t *testing.T) {
	for _, name := range []string{"", "n0", "Rack-1.node_7", strings.Repeat("n", MaxName)} {
		if err := CheckName(name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"n0;reboot", "$(id)", "`id`", "n 0", "n0\n", "n[0-9]", "n\x1b[2J", "é", "a/b", strings.Repeat("n", MaxName+1)} {
		if err := CheckPeer(Version, name, Hints{}); err == nil {
			t.Errorf("%q passes", name)
		}
	}
}

func FuzzDecodeChallenge(f *testing.F) {
	f.Add(Encode(ChallengeRequest{V: 1}))
	f.Add(Encode(ChallengeRequest{V: 1, Node: "n0", Hints: Hints{MACs: []string{"02:00:00:00:00:01"}, UUID: "u"},
		EKs: []EK{{Pub: []byte{1}, Certs: [][]byte{{2}}}}, Key: []byte{2}, CSR: []byte{3}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r ChallengeRequest
		if Decode(b, &r) == nil && !bytes.Equal(Encode(r), b) {
			t.Fatal("accepted what Encode does not write")
		}
	})
}

func FuzzDecodeEnroll(f *testing.F) {
	f.Add(Encode(EnrollRequest{V: 1}))
	f.Add(Encode(EnrollRequest{V: 1, Node: "n0", EKs: []EK{{Pub: []byte{1}}}, Exp: 9, Proof: []byte{1}, Level: TOFU}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r EnrollRequest
		if Decode(b, &r) == nil && !bytes.Equal(Encode(r), b) {
			t.Fatal("accepted what Encode does not write")
		}
	})
}

func FuzzDecodeReport(f *testing.F) {
	f.Add(Encode(Report{V: 1, Node: "n0", Hints: Hints{Serial: "s"}, Code: NoTPM}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r Report
		if Decode(b, &r) == nil && !bytes.Equal(Encode(r), b) {
			t.Fatal("accepted what Encode does not write")
		}
	})
}

// TestTroublesAreDocumented: the set is closed, and each of it has a row in the protocol's table.
func TestTroublesAreDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, code := range Troubles {
		if !bytes.Contains(doc, []byte("\n| `"+string(code)+"` | ")) {
			t.Errorf("docs/protocol.md has no row for %s", code)
		}
	}
	for _, code := range []Trouble{"", "no_tpm ", "NO_TPM", "other"} {
		if code.Known() {
			t.Errorf("%q is known", code)
		}
	}
}
