package inventory

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
)

const ek7 = "7c1d000000000000000000000000000000000000000000000000000000000000"

func TestFormatOf(t *testing.T) {
	for file, want := range map[string]Format{
		"nodes.csv": CSV, "x/N.CSV": CSV, "a.tsv": CSV, "a.json": JSON, "/etc/hosts": Hosts, "cluster.hosts": Hosts,
		"/etc/clustershell/groups": Groups, "groups.d/cluster.yaml": Groups, "a.yml": Groups, "local.cfg": Groups,
		"-": "", "nodes": "", "hosts.bak": "",
	} {
		if got := FormatOf(file); got != want {
			t.Errorf("%s: got %q, want %q", file, got, want)
		}
	}
}

func TestTables(t *testing.T) {
	want := Entry{
		Name: "n1", MAC: []string{"aa:bb:cc:00:00:01", "aa:bb:cc:00:00:02"}, UUID: "4c4c4544-0001-4d10-8052-b4c04f4d3132", EK: ek7,
		Groups: []string{"rack1", "gpu"}, DNS: []string{"n1.example.org"}, IP: []string{"10.0.0.1", "fd00::1"},
	}
	for name, c := range map[string]struct {
		format Format
		text   string
	}{
		"CSV":              {CSV, "name,mac,uuid,ek,groups,dns,ip\nn1,AA-BB-CC-00-00-01 aabb.cc00.0002,4C4C4544-0001-4D10-8052-B4C04F4D3132," + ek7 + ",rack1 gpu,n1.example.org,10.0.0.1 FD00:0::1\n"},
		"other order":      {CSV, "ip,Name,ek,mac,dns,groups,uuid\n\"10.0.0.1,fd00::1\",n1,sha256:" + strings.ToUpper(ek7) + ",\"aa:bb:cc:00:00:01; aa:bb:cc:00:00:02\",n1.example.org,rack1|gpu,4c4c4544-0001-4d10-8052-b4c04f4d3132"},
		"semicolons, BOM":  {CSV, "\ufeffname;mac;uuid;ek;groups;dns;ip\r\n# the first\r\nn1;aa:bb:cc:00:00:01,aa:bb:cc:00:00:02;4c4c4544-0001-4d10-8052-b4c04f4d3132;" + ek7 + ";rack1,gpu,rack1;n1.example.org;10.0.0.1,fd00::1\r\n"},
		"tabs":             {CSV, "name\tmac\tuuid\tek\tgroups\tdns\tip\nn1\taa:bb:cc:00:00:01 aa:bb:cc:00:00:02\t4c4c4544-0001-4d10-8052-b4c04f4d3132\t" + ek7 + "\track1 gpu\tn1.example.org\t10.0.0.1 fd00::1\n"},
		"a column of ours": {CSV, "node,state,mac,uuid,ek,groups,dns,ip\nn1,active,aa:bb:cc:00:00:01 aa:bb:cc:00:00:02,4c4c4544-0001-4d10-8052-b4c04f4d3132," + ek7 + ",rack1 gpu,n1.example.org,10.0.0.1 fd00::1\n"},
		"JSON":             {JSON, `[{"name":"n1","mac":["AA:BB:CC:00:00:01","aa:bb:cc:00:00:02"],"uuid":"4C4C4544-0001-4D10-8052-B4C04F4D3132","ek":"` + ek7 + `","groups":["rack1","gpu"],"dns":"n1.example.org","ip":["10.0.0.1","fd00::1"]}]`},
		"JSON of ours":     {JSON, `{"schema":"muster.nodes/v1","nodes":[{"node":"n1","state":"open","mac":["aa:bb:cc:00:00:01","aa:bb:cc:00:00:02"],"uuid":"4c4c4544-0001-4d10-8052-b4c04f4d3132","ek":"` + ek7 + `","groups":["rack1","gpu"],"dns":["n1.example.org"],"ip":["10.0.0.1","fd00::1"]}]}`},
	} {
		f, err := Parse("f", c.format, []byte(c.text))
		if err != nil || len(f.Entries) != 1 || f.Whole != nil {
			t.Errorf("%s: got %+v, %v", name, f, err)
			continue
		}
		got := f.Entries[0]
		if len(got.Has) != 7 || got.Line == 0 {
			t.Errorf("%s: speaks of %v, line %d", name, got.Has, got.Line)
		}
		got.Has, got.Line = nil, 0
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got\n%+v, want\n%+v", name, got, want)
		}
	}
}

// What a file does not speak of is told from what it leaves empty.
func TestHas(t *testing.T) {
	for text, want := range map[string][]Field{
		"name\nn1\n":                            {Name},
		"mac,name\n,n1\n":                       {MAC, Name},
		`[{"name":"n1","mac":null,"dns":""}]`:   {Name, MAC, DNS},
		`{"nodes":[{"groups":[],"name":"n1"}]}`: {InGroups, Name},
	} {
		format := CSV
		if text[0] == '[' || text[0] == '{' {
			format = JSON
		}
		f, err := Parse("f", format, []byte(text))
		if err != nil || !slices.Equal(f.Entries[0].Has, want) {
			t.Errorf("%s: got %+v, %v", text, f, err)
		}
	}
}

func TestHosts(t *testing.T) {
	f, err := Parse("hosts", Hosts, []byte(`
127.0.0.1	localhost
127.0.1.1	head.example.org head
::1     ip6-localhost ip6-loopback
fe00::0 ip6-localnet
ff02::1 ip6-allnodes
255.255.255.255 broadcasthost
169.254.1.1 bmc
10.0.0.1 n1.example.org n1	n1-mgmt # rack 1
fd00::1  n1.example.org n1
10.0.0.2 n2
10.0.0.3 n3.example.org
`))
	want := []Entry{
		{Line: 9, Name: "n1", DNS: []string{"n1.example.org", "n1", "n1-mgmt"}, IP: []string{"10.0.0.1", "fd00::1"}},
		{Line: 11, Name: "n2", DNS: []string{"n2"}, IP: []string{"10.0.0.2"}},
		{Line: 12, Name: "n3.example.org", DNS: []string{"n3.example.org"}, IP: []string{"10.0.0.3"}},
	}
	for i := range want {
		want[i].Has = []Field{Name, IP, DNS}
	}
	if err != nil || !reflect.DeepEqual(f.Entries, want) {
		t.Errorf("got\n%+v, %v, want\n%+v", f.Entries, err, want)
	}
}

func TestGroups(t *testing.T) {
	for name, c := range map[string]struct {
		text  string
		want  string // node:group,group …
		whole string
	}{
		"ClusterShell's cluster.yaml": {`
# Groups of the racks
racks:
  new: 'n[3-4]'
  old: 'n[0-1]'
  rack4: 'n3'
  all: '@racks:old,@new'
`, "n3:new,rack4,all n4:new,all n0:old,all n1:old,all", "new old rack4 all"},
		"lists, numbers, nothing": {"r:\n  1: n1\n  a:\n  - n[1-2]\n  - '@1'\n  b:\n  c: ''\n", "n1:1,a n2:a", "1 a b c"},
		"several sources":         {"r:\n  a: n1\ns:\n  a: n2\n  b: '@a,@r:a'\n", "n1:r:a,s:b n2:s:a,s:b", "r:a s:a s:b"},
		"lines":                   {"# local\nadm: example0\nio: n[1-2] n4 # three\nio: n5\nall: @adm,@io!n1\nnone:\n", "example0:adm,all n1:io n2:io,all n4:io,all n5:io,all", "adm io all none"},
		"operators":               {"a: n[1-9]\nb: @a!n[2-8]\n", "n1:a,b n2:a n3:a n4:a n5:a n6:a n7:a n8:a n9:a,b", "a b"},
	} {
		f, err := Parse("f", Groups, []byte(c.text))
		var got []string
		for _, e := range f.Entries {
			got = append(got, e.Name+":"+strings.Join(e.Groups, ","))
		}
		if err != nil || strings.Join(got, " ") != c.want || strings.Join(f.Whole, " ") != c.whole {
			t.Errorf("%s: got %s, whole %v, %v", name, strings.Join(got, " "), f.Whole, err)
		}
	}
}

// TestGroupsAreBounded: a file, however it is written, takes neither the stack nor the processor.
func TestGroupsAreBounded(t *testing.T) {
	chain := func(n int, upwards bool) string {
		lines := []string{fmt.Sprintf("g%d:\n", n)}
		for i := n - 1; i >= 0; i-- {
			lines = append(lines, fmt.Sprintf("g%d: @g%d\n", i, i+1))
		}
		if !upwards {
			slices.Reverse(lines)
		}
		return strings.Join(lines, "")
	}
	wide := func(n int, line string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, line, i)
		}
		return b.String()
	}
	for _, c := range []struct{ name, text, want string }{
		{"deep", chain(maxDepth, false), ""},
		{"deep, from below", chain(maxDepth, true), ""},
		{"too deep", chain(maxDepth+1, false), "f:101: groups: groups within groups, more than 100 deep"},
		{"too deep, from below", chain(maxDepth+1, true), "f:102: groups: groups within groups, more than 100 deep"},
		{"much too deep", chain(maxInFile-1, false), "f:101: groups: groups within groups, more than 100 deep"},
		{"many groups", wide(maxInFile, "g%d:\n"), ""},
		{"too many groups", wide(maxInFile+1, "g%d:\n"), "f:16385: groups: more than 16384 groups"},
		{"wide", wide(10, "g%d: n[0-99999]\n"), ""},
		{"too wide", wide(64, "g%d: n[0-99999]\n"), "f:11: groups: up to here the groups name more than 1048576 nodes"},
		{"wide for nothing", "all: n[0-99999]\n" + wide(64, "g%d: @all!@all\n"), "f:6: groups: up to here the groups name more than 1048576 nodes"},
	} {
		f, err := Parse("f", Groups, []byte(c.text))
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != c.want || err != nil && (f.Entries != nil || f.Whole != nil) {
			t.Errorf("%s: got %d entries, %s, want %s", c.name, len(f.Entries), got, c.want)
		}
	}
}

func TestErrors(t *testing.T) {
	for _, c := range []struct {
		format Format
		text   string
		want   string
	}{
		{CSV, "", "f:1: no header"},
		{CSV, "\n# nothing\n", "f:1: no header"},
		{CSV, "mac\naa:bb:cc:00:00:01\n", "f:1: no column name"},
		{CSV, "name,serial\nn1,x\n", `f:1: a column "serial" is not known`},
		{CSV, "name,mac,MAC\n", "f:1: the column mac is there twice"},
		{CSV, "name,node\n", "f:1: the column name is there twice"},
		{CSV, "name\nn1,x\n", "f:2: wrong number of fields"},
		{CSV, "name,mac\nn1,\n,aa:bb:cc:00:00:01\n", "f:3: name: is empty"},
		{CSV, "name\nn1-\n", `f:2: name: "n1-" cannot be a node's name`},
		{CSV, "name\n" + strings.Repeat("n", 65) + "\n", "f:2: name: "},
		{CSV, "name\naa:bb:cc:00:00:01\n", `f:2: name: "aa:bb:cc:00:00:01" cannot`},
		{CSV, "name\n4c4c4544-0001-4d10-8052-b4c04f4d3132\n", "f:2: name: "},
		{CSV, "name,mac\nn1,aa:bb:cc:00:00\n", "f:2: mac: "},
		{CSV, "name,mac\nn1,00:00:00:00:00:00\n", "f:2: mac: "},
		{CSV, "name,mac\nn1,ff-ff-ff-ff-ff-ff\n", "f:2: mac: "},
		{CSV, "name,uuid\nn1,ffffffff-ffff-ffff-ffff-ffffffffffff\n", "f:2: uuid: "},
		{CSV, "name,uuid\nn1,4c4c4544\n", "f:2: uuid: "},
		{CSV, "name,ek\nn1,7c1d\n", "f:2: ek: "},
		{CSV, "name,ek\nn1," + ek7 + " " + ek7 + "\n", "f:2: ek: 2 values"},
		{CSV, "name,groups\nn1,rack/1\n", "f:2: groups: "},
		{CSV, "name,dns\nn1,a..b\n", "f:2: dns: "},
		{CSV, "name,ip\nn1,10.0.0\n", "f:2: ip: "},
		{CSV, "name,ip\nn1,fe80::1%eth0\n", "f:2: ip: "},
		{CSV, "name,ek\nn1," + ek7 + "\nn2," + ek7 + "\n", "f:3: ek: " + ek7 + " stands on line 2 too, for n1"},
		{CSV, "name,mac\nn1,02:00:00:00:00:01\n\nn2,0200.0000.0001\n", "f:4: mac: 02:00:00:00:00:01 stands on line 2"},
		{CSV, "name,mac\nn1," + strings.Join(macs(17), " ") + "\n", "f:2: mac: 17 values, more than 16"},
		{JSON, "", "f:1: the file ends too early"},
		{JSON, "[\n{\"name\":\"n1\"},\n", "f:3: the file ends too early"},
		{JSON, "[\n{\"name\":\"n1\"}\n{\"name\":\"n2\"}]", "f:3: "},
		{JSON, "[{\"name\":\"n1\"}] x", "f:1: more after the end"},
		{JSON, "[{\"name\":\"n1\"}]\n[]", "f:2: more after the end"},
		{JSON, "3", "f:1: 3 where ["},
		{JSON, "[\n3]", "f:2: 3 where {"},
		{JSON, "[\n[]]", "f:2: [ where {"},
		{JSON, `{"x":[]}`, `f:1: "x" beside`},
		{JSON, `{}`, "f:1: no list of nodes"},
		{JSON, `{"nodes":[],"nodes":[]}`, `f:1: "nodes" beside`},
		{JSON, "[{\"name\":\"n1\",\n\"serial\":\"x\"}]", `f:2: a field "serial" is not known`},
		{JSON, `[{"name":"n1","name":"n2"}]`, "f:1: the field name is there twice"},
		{JSON, `[{"name":"n1","node":"n2"}]`, "f:1: the field name is there twice"},
		{JSON, "[{\"name\":\"n1\",\n\"mac\":3}]", "f:2: mac: 3 is neither"},
		{JSON, "[{\"name\":\"n1\",\n\"mac\":[\"x\"]}]", "f:2: mac: \"x\" is not a MAC"},
		{JSON, "[{\"name\":\"n1\",\n\"ip\":[[\"10.0.0.1\"]]}]", "f:2: ip: [["},
		{JSON, "[{}]", "f:1: name: is missing"},
		{JSON, `[{"name":["n1","n2"]}]`, "f:1: name: 2 values"},
		{JSON, "[{\"name\":\"n1\"},\n{\"name\":\"n1\"}]", "f:2: name: n1 stands on line 1"},
		{Hosts, "10.0.0.1 n1\n10.0.0 n2\n", "f:2: ip: "},
		{Hosts, "10.0.0.1\n", "f:1: name: is missing"},
		{Hosts, "10.0.0.1 n_\n", "f:1: name: "},
		{Hosts, "10.0.0.1 n1\n10.0.0.2 n1 a_b\n", "f:2: dns: "},
		{Groups, "r:\n  a: 'n[1-'\n", "f:2: groups: nodeset"},
		{Groups, "r:\n  a: '@b'\n", "f:2: groups: nodeset \"@b\", column 1: no group b in this file"},
		{Groups, "r:\n  a: '@b'\n  b: '@c'\n  c: '@a'\n", "f:4: groups: a is made of itself"},
		{Groups, "r:\n  a: {x: y}\n", "f:2: groups: \"a\" is neither"},
		{Groups, "r:\n  a: [[n1]]\n", "f:2: groups: \"a\" is neither"},
		{Groups, "r:\n  a: &x n1\n  b: *x\n", "f:3: groups: \"b\" is neither"},
		{Groups, "r:\n  a: n1\ns: n2\n", "f:3: the source \"s\" is not"},
		{Groups, "r:\n  a b: n1\n", "f:2: groups: \"a b\" is not a group's name"},
		{Groups, "r:\n  a: n1\n  a: n2\n", "f:3: groups: a is there twice"},
		{Groups, "r:\n\ta: n1\n", "f:2: yaml: "},
		{Groups, "[local]\nmap: x\n", "f:1: this is ClusterShell's configuration"},
		{Groups, "a: n1\nn2\n", "f:2: \"n2\" is not of the form"},
		{Groups, "a: n1-\n", "f:1: name: \"n1-\""},
		{"xml", "", `f:1: format "xml"`},
	} {
		f, err := Parse("f", c.format, []byte(c.text))
		var bad *Error
		if !errors.As(err, &bad) || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s %q: got %v, want %s", c.format, c.text, err, c.want)
		}
		if !reflect.DeepEqual(f, File{}) {
			t.Errorf("%s %q: an error with %+v", c.format, c.text, f)
		}
	}
}

func macs(n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprintf("02:00:00:00:00:%02x", i+1))
	}
	return all
}

// asCSV and asJSON write entries as `muster nodes list` does.
func asCSV(t *testing.T, entries []Entry) []byte {
	var b strings.Builder
	w := csv.NewWriter(&b)
	w.Write([]string{"name", "mac", "uuid", "ek", "groups", "dns", "ip"})
	for _, e := range entries {
		w.Write([]string{e.Name, strings.Join(e.MAC, " "), e.UUID, e.EK, strings.Join(e.Groups, " "), strings.Join(e.DNS, " "), strings.Join(e.IP, " ")})
	}
	w.Flush()
	if w.Error() != nil {
		t.Fatal(w.Error())
	}
	return []byte(b.String())
}

func asJSON(t *testing.T, entries []Entry) []byte {
	rows := []map[string]any{}
	for _, e := range entries {
		rows = append(rows, map[string]any{"name": e.Name, "mac": e.MAC, "uuid": e.UUID, "ek": e.EK, "groups": e.Groups, "dns": e.DNS, "ip": e.IP})
	}
	b, err := json.Marshal(rows)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// fuzz asserts that what is read reads as the same when it is written as a table, and that an error leaves nothing.
func fuzz(f *testing.F, format Format) {
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := Parse("f", format, data)
		var bad *Error
		if err != nil {
			if !errors.As(err, &bad) || bad.Line < 1 || !reflect.DeepEqual(file, File{}) {
				t.Fatalf("got %#v with %+v", err, file)
			}
			return
		}
		for _, again := range []struct {
			format Format
			text   []byte
		}{{CSV, asCSV(t, file.Entries)}, {JSON, asJSON(t, file.Entries)}} {
			got, err := Parse("f", again.format, again.text)
			if err != nil || len(got.Entries) != len(file.Entries) {
				t.Fatalf("%s: %v\n%s", again.format, err, again.text)
			}
			for i, e := range file.Entries {
				g := got.Entries[i]
				g.Line, g.Has = e.Line, e.Has
				if !reflect.DeepEqual(g, e) {
					t.Errorf("%s: got %+v, want %+v", again.format, g, e)
				}
			}
		}
	})
}

func FuzzCSV(f *testing.F) {
	f.Add([]byte("name,mac,uuid,ek,groups,dns,ip\nn1,aa:bb:cc:00:00:01,4c4c4544-0001-4d10-8052-b4c04f4d3132," + ek7 + ",a b,x.y,\"10.0.0.1,fd00::1\"\n"))
	f.Add([]byte("\ufeffname;mac\r\n#x\r\nn1;\"aabb.cc00.0001\"\r\n"))
	fuzz(f, CSV)
}

func FuzzJSON(f *testing.F) {
	f.Add([]byte(`{"schema":"x","nodes":[{"name":"n1","mac":["aa:bb:cc:00:00:01"],"uuid":null,"groups":["a"],"ip":"10.0.0.1"}]}`))
	f.Add([]byte(`[{"node":"n1","state":"open"}]`))
	fuzz(f, JSON)
}

func FuzzHosts(f *testing.F) {
	f.Add([]byte("127.0.0.1 localhost\n10.0.0.1 n1.x n1 # y\nfd00::1 n1\n"))
	fuzz(f, Hosts)
}

func FuzzGroups(f *testing.F) {
	f.Add([]byte("r:\n  a: 'n[1-3]'\n  b:\n  - '@a!n2'\n  - x\ns: {a: '@r:b'}\n"))
	f.Add([]byte("a: n[1-2] n5\na: n7\nb: @a\n"))
	fuzz(f, Groups)
}
