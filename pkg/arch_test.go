package pkg

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// pure are the rooms that compute values from values: no files, processes, network, logging, clock
// or random numbers. So they can be tested with data only.
var pure = []string{"netconf", "lease", "host", "dataplane", "firewall", "backend", "configdiff", "shell", "plan", "status", "trace"}

// forbidden are the packages that pure rooms must not import, or with a list, of which they may use
// only the names in it.
var forbidden = map[string][]string{
	"os": nil, "os/exec": nil, "log": nil, "log/slog": nil, "math/rand": nil, "math/rand/v2": nil,
	"crypto/rand": nil, "syscall": nil, "net/http": nil,
	"net":  {"HardwareAddr", "ParseMAC"},
	"time": {"Time", "Duration", "Second", "Minute", "Hour", "Millisecond"},
}

// mayImport are the rooms that each room may import.
var mayImport = map[string][]string{
	"lease":                 {},
	"netconf":               {"lease"},
	"host":                  {"shell"},
	"shell":                 {},
	"dataplane":             {"shell"},
	"plan":                  {"dataplane", "firewall", "status"},
	"firewall":              {"shell"},
	"configdiff":            {"backend", "lease", "netconf"},
	"condition":             {},
	"logsink":               {"pace"},
	"pace":                  {},
	"probe":                 {},
	"presence":              {"condition", "pace"},
	"iptables":              {"firewall", "pace", "shell"},
	"netlink":               {},
	"nftables":              {"firewall", "netlink", "pace", "shell"},
	"firewalld":             {},
	"filter":                {"firewall", "firewalld", "lease", "netconf", "host", "dataplane", "backend", "condition", "pace"},
	"status":                {},
	"trace":                 {"lease", "host", "dataplane", "shell", "status"},
	"page":                  {"status", "pace"},
	"api":                   {"status", "plan", "logsink", "condition", "subnetenv", "pace"},
	"systemd":               {"condition"},
	"needs":                 {"host", "dataplane", "kernel", "presence", "condition", "pace", "registry/etcd"},
	"uplink":                {"host", "backend", "driver", "kernel", "needs", "probe", "condition", "pace"},
	"metrics":               {"dataplane", "filter", "kernel", "lease", "reconcile", "registry/store", "subnet", "tunnel"},
	"prober":                {"backend", "host", "lease", "condition", "pace"},
	"terms":                 {"host", "lease", "backend", "condition", "pace", "subnet"},
	"checks":                {"host", "lease", "backend", "dataplane", "kernel", "presence", "reconcile", "condition", "pace", "shell"},
	"operator":              {"host", "lease", "netconf", "backend", "configdiff", "status", "kernel", "uplink", "api", "subnetenv", "registry", "registry/etcd", "registry/etcdv3", "registry/store", "condition"},
	"doctor":                {"host", "lease", "backend", "dataplane", "firewall", "kernel", "iptables", "nftables", "presence", "subnetenv", "registry", "registry/etcd", "registry/etcdv2", "registry/etcdv3", "registry/store", "api", "status", "trace", "condition", "shell"},
	"cleanup":               {"subnetenv", "presence", "kernel", "dataplane", "firewall", "iptables", "nftables", "firewalld"},
	"subnetenv":             {"lease", "condition", "pace", "shell"},
	"backend":               {"netconf", "lease", "host", "dataplane"},
	"registry":              {"lease", "netconf"},
	"registry/etcd":         {},
	"registry/etcdv2":       {"lease", "registry", "registry/etcd"},
	"registry/etcdv3":       {"lease", "registry", "registry/etcd", "pace"},
	"registry/memory":       {"lease", "registry"},
	"registry/store":        {"lease", "registry", "registry/etcd", "registry/etcdv2", "registry/etcdv3", "condition", "pace", "shell"},
	"registry/registrytest": {"lease", "registry", "registry/etcd", "lab/etcdkeys", "lab/etcdtest", "lab/relay", "lab/wait"},
	"subnet":                {"registry", "lease", "condition", "pace"},
	"driver":                {"dataplane"},
	"kernel":                {"driver", "dataplane", "host", "netlink", "pace"},
	"reconcile":             {"driver", "dataplane", "backend", "host", "lease", "condition", "pace"},
	"lab":                   {"lab/etcdkeys", "lab/etcdserver", "lab/netns", "lab/relay", "lab/wait"},
	"lab/cache":             {},
	"lab/etcdkeys":          {},
	"lab/etcdserver":        {},
	"lab/etcdtest":          {"lab/etcdkeys", "lab/etcdserver", "lab/relay"},
	"lab/golden":            {},
	"lab/logs":              {},
	"lab/machine":           {"lab", "lab/cache", "lab/wait"},
	"lab/netns":             {},
	"lab/relay":             {},
	"lab/vm":                {"lab/cache"},
	"lab/wait":              {},
	"tunnel":                {"driver", "dataplane", "host", "pace"},
}

// commands are the rooms that the command flanneld may import: those that it runs, and the log that
// it opens.
var commands = []string{"daemon", "cleanup", "api", "status", "trace", "doctor", "operator", "configdiff", "plan", "logsink"}

// homes are the rooms that may import a library. One home each, so that replacing a library changes
// one package. The test beds below lab are excepted.
var homes = map[string][]string{
	"github.com/vishvananda/netlink":   {"kernel", "lab"},
	"go.etcd.io/etcd/client/v2":        {"registry/etcdv2", "lab"},
	"go.etcd.io/etcd/client/v3":        {"registry/etcdv3", "lab"},
	"go.etcd.io/etcd/api/v3":           {"registry/etcdv3", "lab"},
	"google.golang.org/grpc":           {"registry/etcdv3", "lab"},
	"go.etcd.io/etcd/server/v3":        {"lab"},
	"github.com/coreos/go-systemd/v22": {"systemd"},
	"github.com/coreos/go-iptables":    {"iptables"},
	"github.com/godbus/dbus/v5":        {"firewalld"},
	"github.com/prometheus":            {"metrics"},
	"github.com/spf13/pflag":           {"cmd"},
	"github.com/spf13/cobra":           {"cmd"},
}

type source struct {
	room string // directory below pkg; "" for pkg itself; "cmd/..." for commands
	path string
	file *ast.File
	fset *token.FileSet
}

func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	for _, root := range []string{".", "../cmd"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, path, nil, parser.ParseComments)
			room := strings.TrimPrefix(filepath.ToSlash(filepath.Dir(path)), "../")
			all = append(all, source{strings.TrimPrefix(room, "."), path, f, fset})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// inspect calls f for each node of the sources of rooms for which in returns true.
func inspect(t *testing.T, in func(room string) bool, f func(s source, n ast.Node)) {
	t.Helper()
	for _, s := range sources(t) {
		if in(s.room) {
			ast.Inspect(s.file, func(n ast.Node) bool {
				f(s, n)
				return true
			})
		}
	}
}

// at returns the position of a node.
func (s source) at(n ast.Node) token.Position { return s.fset.Position(n.Pos()) }

func isPure(room string) bool { return slices.Contains(pure, room) }

// isBed reports whether a room is a test bed.
func isBed(room string) bool { return room == "lab" || strings.HasPrefix(room, "lab/") }

func (s source) imports() []string {
	var out []string
	for _, i := range s.file.Imports {
		p, _ := strconv.Unquote(i.Path.Value)
		out = append(out, p)
	}
	return out
}

func TestRoomsImportWhatTheyMay(t *testing.T) {
	for _, s := range sources(t) {
		allowed, restricted := mayImport[s.room]
		for _, imp := range s.imports() {
			room, ours := strings.CutPrefix(imp, "flanneld/pkg/")
			if ours && restricted && !slices.Contains(allowed, room) {
				t.Errorf("%s imports %s: %s may import only %v, so that data flows one way", s.path, imp, s.room, allowed)
			}
			if ours && !restricted && s.room != "daemon" && !strings.HasPrefix(s.room, "cmd/") {
				t.Errorf("%s imports %s: the room %q is unknown to this test; say what it may import", s.path, imp, s.room)
			}
			if ours && s.room == "cmd/flanneld" && !slices.Contains(commands, room) {
				t.Errorf("%s imports %s: a command turns flags into options, opens its log, and sees nothing but %v", s.path, imp, commands)
			}
			if ours && room == "daemon" && s.room != "cmd/flanneld" {
				t.Errorf("%s imports %s: the daemon imports all and nobody imports it but the command", s.path, imp)
			}
		}
	}
}

// TestMapIsInOrder checks that the map in doc.go has every room, and that each imports only rooms
// above it, so that data flows one way.
func TestMapIsInOrder(t *testing.T) {
	text, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	line := map[string]int{}
	for i, m := range regexp.MustCompile(`(?m)^//\t([a-z0-9]+)  `).FindAllStringSubmatch(string(text), -1) {
		line[m[1]] = i + 1
	}
	for _, s := range sources(t) {
		room, _, _ := strings.Cut(s.room, "/")
		if room == "" || room == "cmd" || s.room == "registry/registrytest" {
			continue
		}
		if line[room] == 0 {
			t.Errorf("%s: the map in doc.go has no room %q", s.path, room)
		}
		for _, imp := range s.imports() {
			below, ours := strings.CutPrefix(imp, "flanneld/pkg/")
			if below, _, _ = strings.Cut(below, "/"); ours && below != room && line[below] >= line[room] {
				t.Errorf("%s imports %s: by the map in doc.go, %s is not below %s", s.path, imp, below, room)
			}
		}
	}
}

func TestForeignLibrariesHaveOneHome(t *testing.T) {
	inside := func(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }
	for _, s := range sources(t) {
		for _, imp := range s.imports() {
			for lib, rooms := range homes {
				if inside(imp, lib) && !slices.ContainsFunc(rooms, func(r string) bool { return inside(s.room, r) }) {
					t.Errorf("%s imports %s: its home is %v", s.path, imp, rooms)
				}
			}
		}
	}
}

// TestNetlinkHasOneHome checks that one room knows how messages are framed and when the kernel has
// answered.
func TestNetlinkHasOneHome(t *testing.T) {
	parts := []string{"SockaddrNetlink", "SockFprog", "RtAttr"}
	in := func(room string) bool { return room != "netlink" && !isBed(room) } // a bed's filters are for system calls
	inspect(t, in, func(s source, n ast.Node) {
		if pkg, name, ok := selector(n); ok && pkg == "unix" && slices.Contains(parts, name) {
			t.Errorf("%s uses unix.%s: package netlink does", s.at(n), name)
		}
	})
}

func TestPureRoomsArePure(t *testing.T) {
	for _, s := range sources(t) {
		if !isPure(s.room) {
			continue
		}
		for _, imp := range s.imports() {
			allowed, listed := forbidden[imp]
			if listed && allowed == nil {
				t.Errorf("%s imports %s: %s is pure, it turns values into values", s.path, imp, s.room)
			}
			if strings.Contains(imp, ".") {
				t.Errorf("%s imports %s: pure rooms use the standard library only", s.path, imp)
			}
		}
	}
	inspect(t, isPure, func(s source, n ast.Node) {
		pkg, name, _ := selector(n)
		if allowed := forbidden[pkg]; allowed != nil && !slices.Contains(allowed, name) {
			t.Errorf("%s uses %s.%s: %s is pure: no clock, no network", s.at(n), pkg, name, s.room)
		}
	})
}

func TestNoSleepPanicExitOrState(t *testing.T) {
	in := func(room string) bool { return !strings.HasPrefix(room, "cmd/") && room != "lab/golden" } // its flag is one of go test
	inspect(t, in, func(s source, n ast.Node) {
		switch n := n.(type) {
		case *ast.File:
			for _, d := range n.Decls {
				g, ok := d.(*ast.GenDecl)
				if !ok || g.Tok != token.VAR {
					continue
				}
				for _, spec := range g.Specs {
					if embedded(g) {
						continue
					}
					if v := spec.(*ast.ValueSpec); !constantLike(s, v) {
						t.Errorf("%s: package-level variable %s: state belongs to values, so that two can exist", s.at(v), v.Names[0])
					}
				}
			}
		case *ast.SelectorExpr:
			if pkg, name, _ := selector(n); pkg == "time" && name == "Sleep" || pkg == "os" && name == "Exit" && !isBed(s.room) {
				t.Errorf("%s uses %s.%s: wait for a condition or a context; only a command ends the process", s.at(n), pkg, name)
			}
		case *ast.CallExpr:
			if isIdent(n.Fun, "panic") {
				t.Errorf("%s panics: return an error", s.at(n))
			}
		}
	})
}

// TestTimesAreMonotonic checks that times that are compared come from time.Now, which includes a
// monotonic clock reading. Times from other sources have none, so a change of the clock would
// affect them.
func TestTimesAreMonotonic(t *testing.T) {
	wall := []string{"Unix", "UnixNano", "UnixMicro", "UnixMilli", "UTC", "Local", "In", "AddDate"}
	inspect(t, isDaemon, func(s source, n ast.Node) {
		c, ok := n.(*ast.CallExpr)
		if !ok {
			return
		}
		if sel, ok := c.Fun.(*ast.SelectorExpr); ok && slices.Contains(wall, sel.Sel.Name) {
			if pkg, _, ok := selector(sel); !ok || pkg == "time" && sel.Sel.Name != "Unix" {
				t.Errorf("%s: %s: keep what time.Now returns", s.at(n), sel.Sel.Name)
			}
		}
	})
}

// repeats are debug lines about failures that a warning or a condition reports already.
var repeats = map[string]string{
	"operation failed":                              "reconcile: the report counts them",
	"registry denies reading, will retry":           "daemon: etcd-access",
	"registry denies writing the lease, will retry": "daemon: etcd-access",
	"registry is still unreachable":                 "subnet: outage",
}

// TestNoFailureIsHiddenAtDebug checks that failures are not only logged at debug level: an operator
// must find them in the log. A failure is a warning or a condition.
func TestNoFailureIsHiddenAtDebug(t *testing.T) {
	inspect(t, isDaemon, func(s source, n ast.Node) {
		c, ok := n.(*ast.CallExpr)
		if !ok || !slices.Contains([]string{"Debug", "DebugContext"}, lastName(c.Fun)) {
			return
		}
		failure := slices.ContainsFunc(c.Args, func(a ast.Expr) bool { return literal(a) == "err" })
		if said := slices.ContainsFunc(c.Args, func(a ast.Expr) bool { return repeats[literal(a)] != "" }); failure && !said {
			t.Errorf("%s: a failure is logged at debug only: make it a condition, or a warning", s.at(n))
		}
	})
}

// literal returns the value of a string literal, else an empty string.
func literal(e ast.Expr) string {
	l, ok := e.(*ast.BasicLit)
	if !ok || l.Kind != token.STRING {
		return ""
	}
	v, _ := strconv.Unquote(l.Value)
	return v
}

// constantLike reports whether a variable is never assigned: errors, interface assertions, compiled
// patterns, the register of backends, the table of kinds, and that of their handlers.
func constantLike(s source, v *ast.ValueSpec) bool {
	name := v.Names[0].Name
	if name == "_" || s.room == "backend" && name == "backends" || strings.HasSuffix(s.path, "dataplane/kinds.go") || strings.HasSuffix(s.path, "kernel/handler.go") {
		return true
	}
	if len(v.Values) != 1 {
		return false
	}
	c, ok := v.Values[0].(*ast.CallExpr)
	if !ok {
		return false
	}
	pkg, fn, ok := selector(c.Fun)
	return ok && slices.Contains([]string{"errors.New", "fmt.Errorf", "regexp.MustCompile", "netip.MustParseAddr", "netip.MustParsePrefix", "netip.AddrFrom4"}, pkg+"."+fn)
}

// embedded reports whether a declaration is of a file that is embedded in the program.
func embedded(d *ast.GenDecl) bool {
	return d.Doc != nil && slices.ContainsFunc(d.Doc.List, func(c *ast.Comment) bool { return strings.HasPrefix(c.Text, "//go:embed ") })
}

// selector returns the parts of an expression pkg.Name.
func selector(n ast.Node) (pkg, name string, ok bool) {
	sel, ok := n.(*ast.SelectorExpr)
	if !ok {
		return "", "", false
	}
	x, ok := sel.X.(*ast.Ident)
	if !ok || x.Obj != nil { // a local variable
		return "", "", false
	}
	return x.Name, sel.Sel.Name, true
}
