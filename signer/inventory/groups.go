package inventory

import (
	"errors"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"

	"muster/signer/nodeset"
)

// group is one group as a file has it: an expression, which may name other groups.
type group struct {
	name  string // with its source before it, where the file has several
	short string // without
	line  int
	exprs []string
	nodes nodeset.Set
	state int // of resolving: not begun, under way, resolved
	depth int // of the groups within it
}

// groupList is the groups of a file, in its order.
type groupList struct {
	all    []*group
	byName map[string]*group
	named  int // nodes of all groups, and of all places where one names another
}

// Limits of a file of groups. A chain of them would take a stack, and a short file can name very many nodes.
const (
	maxInFile = 1 << 14 // groups
	maxDepth  = 100     // groups within groups
	maxNamed  = 1 << 20 // nodes, each counted for each group that it is named in
)

// parseGroups reads ClusterShell's groups: YAML with sources, each a map of groups, or lines of
// "group: nodes". With one source in the file, groups are called as there; with several, SOURCE:GROUP.
func parseGroups(data []byte) (File, *Error) {
	list := &groupList{byName: map[string]*group{}}
	if bad := list.read(data); bad != nil {
		return File{}, bad
	}
	for _, g := range list.all {
		if bad := list.resolve(g, 0); bad != nil {
			return File{}, bad
		}
	}
	return membership(list.all)
}

// membership turns groups of nodes into nodes with their groups.
func membership(groups []*group) (File, *Error) {
	var f File
	known := map[string]int{}
	for _, g := range groups {
		f.Whole = append(f.Whole, g.name)
		for name := range g.nodes.All() {
			i, ok := known[name]
			if !ok {
				i = len(f.Entries)
				known[name] = i
				f.Entries = append(f.Entries, Entry{Line: g.line})
				if bad := f.Entries[i].set(Name, []string{name}); bad != nil {
					return File{}, bad
				}
			}
			if bad := f.Entries[i].set(InGroups, []string{g.name}); bad != nil {
				bad.Line = g.line
				return File{}, bad
			}
		}
	}
	return f, nil
}

func (l *groupList) read(data []byte) *Error {
	var doc yaml.Node
	err := yaml.Unmarshal(data, &doc)
	if err == nil && sources(&doc) {
		return l.readYAML(doc.Content[0])
	}
	return l.readLines(data, err)
}

// sources says whether a document is a map of maps, as groups.d/*.yaml is. A file of lines is a map
// of texts, where it is YAML at all.
func sources(doc *yaml.Node) bool {
	if len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		return false
	}
	for i := 1; i < len(doc.Content[0].Content); i += 2 {
		if doc.Content[0].Content[i].Kind == yaml.MappingNode {
			return true
		}
	}
	return false
}

func (l *groupList) readYAML(top *yaml.Node) *Error {
	for i := 0; i < len(top.Content); i += 2 {
		source, body := top.Content[i], top.Content[i+1]
		if body.Kind != yaml.MappingNode {
			return &Error{Line: body.Line, Msg: fmt.Sprintf("the source %.80q is not a map of groups", source.Value)}
		}
		for j := 0; j < len(body.Content); j += 2 {
			key, value := body.Content[j], body.Content[j+1]
			g := &group{name: key.Value, short: key.Value, line: key.Line}
			if len(top.Content) > 2 {
				g.name = source.Value + ":" + key.Value
			}
			var ok bool
			if g.exprs, ok = expressions(value); !ok {
				return &Error{Line: value.Line, Field: InGroups, Msg: fmt.Sprintf("%.80q is neither a node set nor a list of them", key.Value)}
			}
			if bad := l.add(g); bad != nil {
				return bad
			}
		}
	}
	return nil
}

// expressions are the node sets of a YAML value: a text, or a list of texts. An alias is neither: what
// it stands for may be large.
func expressions(n *yaml.Node) ([]string, bool) {
	switch n.Kind {
	case yaml.ScalarNode:
		if n.Tag == "!!null" || n.Value == "" {
			return nil, true
		}
		return []string{n.Value}, true
	case yaml.SequenceNode:
		var all []string
		for _, c := range n.Content {
			if c.Kind != yaml.ScalarNode {
				return nil, false
			}
			all = append(all, c.Value)
		}
		return all, true
	}
	return nil, false
}

// readLines reads "group: nodes"; a group that stands on several lines has the nodes of all. notYAML is
// why the file is no YAML, for one that was meant to be.
func (l *groupList) readLines(data []byte, notYAML error) *Error {
	n := 0
	for line := range strings.Lines(string(data)) {
		n++
		line, _, _ = strings.Cut(line, "#")
		text := strings.TrimSpace(line)
		name, expr, ok := strings.Cut(text, ":")
		switch {
		case text == "":
			continue
		case text[0] == '[':
			return &Error{Line: n, Msg: "this is ClusterShell's configuration of a source, not its groups: import what it reads"}
		case line[0] != text[0] && notYAML != nil:
			return &Error{Line: n, Msg: notYAML.Error()}
		case line[0] != text[0] || !ok:
			return &Error{Line: n, Msg: fmt.Sprintf("%.80q is not of the form group: nodes", text)}
		}
		name = strings.TrimSpace(name)
		if g := l.byName[name]; g != nil {
			g.exprs = append(g.exprs, strings.Fields(expr)...)
			continue
		}
		if bad := l.add(&group{name: name, short: name, line: n, exprs: strings.Fields(expr)}); bad != nil {
			return bad
		}
	}
	return nil
}

func (l *groupList) add(g *group) *Error {
	if !CheckGroup(g.name) {
		return &Error{Line: g.line, Field: InGroups, Msg: fmt.Sprintf("%.80q is not a group's name", g.name)}
	}
	if l.byName[g.name] != nil {
		return &Error{Line: g.line, Field: InGroups, Msg: fmt.Sprintf("%s is there twice", g.name)}
	}
	if len(l.all) == maxInFile {
		return &Error{Line: g.line, Field: InGroups, Msg: fmt.Sprintf("more than %d groups", maxInFile)}
	}
	l.all = append(l.all, g)
	l.byName[g.name] = g
	return nil
}

const (
	underWay = 1
	resolved = 2
)

// resolve works out the nodes of a group, and first those of the groups that it is made of. It stands within level others.
func (l *groupList) resolve(g *group, level int) *Error {
	if g.state == resolved {
		return nil
	}
	g.state = underWay
	p := nodeset.Parser{Group: func(name string) (nodeset.Set, error) { return l.of(g, name, level) }}
	set, err := p.Parse(strings.Join(g.exprs, ","))
	var inner *Error
	switch {
	case errors.As(err, &inner):
		return inner
	case err != nil:
		return &Error{Line: g.line, Field: InGroups, Msg: err.Error()}
	}
	g.nodes, g.state = set, resolved
	return l.count(g, set)
}

// count adds the nodes that g names to those of the file.
func (l *groupList) count(g *group, nodes nodeset.Set) *Error {
	if l.named += nodes.Len(); l.named > maxNamed {
		return &Error{Line: g.line, Field: InGroups, Msg: fmt.Sprintf("up to here the groups name more than %d nodes", maxNamed)}
	}
	return nil
}

// of is a group that the expression of g names: in its own source, in the one it says, or in the only one.
func (l *groupList) of(g *group, name string, level int) (nodeset.Set, error) {
	source := strings.TrimSuffix(g.name, g.short)
	for _, full := range []string{source + name, name, name[strings.IndexByte(name, ':')+1:]} {
		other := l.byName[full]
		switch {
		case other == nil:
			continue
		case other.state == underWay:
			return nodeset.Set{}, &Error{Line: g.line, Field: InGroups, Msg: other.name + " is made of itself"}
		case level == maxDepth:
			return nodeset.Set{}, tooDeep(g)
		}
		if bad := l.resolve(other, level+1); bad != nil {
			return nodeset.Set{}, bad
		}
		// Whichever is resolved first, the answer is the same.
		if g.depth = max(g.depth, other.depth+1); g.depth > maxDepth {
			return nodeset.Set{}, tooDeep(g)
		}
		if bad := l.count(g, other.nodes); bad != nil {
			return nodeset.Set{}, bad
		}
		return other.nodes, nil
	}
	return nodeset.Set{}, fmt.Errorf("no group %s in this file", name)
}

func tooDeep(g *group) *Error {
	return &Error{Line: g.line, Field: InGroups, Msg: fmt.Sprintf("groups within groups, more than %d deep", maxDepth)}
}
