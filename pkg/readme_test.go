package pkg

import (
	"encoding/json"
	"go/ast"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"flanneld/pkg/backend"
	"flanneld/pkg/doctor"
	"flanneld/pkg/status"
)

// TestBadConfigFieldsSayWhatTheyMustBe checks the message about a bad value of each field of the
// network config: it names the field and the value, and says what the value must be. A new field
// needs a bad value here.
func TestBadConfigFieldsSayWhatTheyMustBe(t *testing.T) {
	bad := map[string][]string{
		"Network": {`7`, `"10.42.0.0"`, `"0.0.0.0/0"`, `"127.0.0.0/8"`}, "SubnetLen": {`"24"`, `31`},
		"SubnetMin": {`"x"`, `"10.9.0.0"`, `"10.42.1.7"`}, "SubnetMax": {`null`, `"10.9.0.0"`, `"10.42.0.0"`},
		"SubnetLeaseTTL": {`59`, `"1h"`}, "EnableNFTables": {`"yes"`},
		"Backend.Type": {`"pigeon"`, `1`}, "Backend.VNI": {`-1`, `10000000`}, "Backend.Port": {`65536`, `"8472"`},
		"Backend.GBP": {`1`}, "Backend.Learning": {`"true"`}, "Backend.DirectRouting": {`0`}, "Backend.MTU": {`100`, `"1500"`},
		"Backend.AllowUnknownSources": {`1`}, "Backend.Offload": {`"on"`},
		"Backend": {`"vxlan"`}, "EnableIPv4": {`false`}, "EnableIPv6": {`true`, `1`},
	}
	others := []configField{{"EnableIPv4", ""}, {"EnableIPv6", ""}, {"Backend", ""}}
	for _, f := range append(readmeConfigFields(t), others...) {
		if len(bad[f.name]) == 0 {
			t.Errorf("config field %s: there must be a bad value of it in this test", f.name)
		}
		for _, value := range bad[f.name] {
			text := f.config(value)
			_, err := backend.ParseNetwork([]byte(text))
			if want := "network config: " + f.name + ": " + value + ": must be "; err == nil || !strings.HasPrefix(err.Error(), want) {
				t.Errorf("%s: got %v, want %q", text, err, want)
			}
		}
	}
}

// TestReadmeHasEachConfigField checks that the README's tables of the network config have each field
// that the code reads.
func TestReadmeHasEachConfigField(t *testing.T) {
	there := []string{"EnableIPv4", "EnableIPv6", "Backend", "VtepMAC"} // the last one is in leases
	for _, f := range readmeConfigFields(t) {
		there = append(there, strings.TrimPrefix(f.name, "Backend."))
	}
	readers := []string{"Int", "Bool", "String", "Addr", "Object", "text", "choice", "bound"} // of netconf.Fields
	in := func(room string) bool { return room == "netconf" || room == "backend" }
	inspect(t, in, func(s source, n ast.Node) {
		c, ok := n.(*ast.CallExpr)
		if !ok || !slices.Contains(readers, lastName(c.Fun)) {
			return
		}
		for _, arg := range c.Args {
			if name := literal(arg); name != "" && !slices.Contains(there, name) && token.IsExported(name) && token.IsIdentifier(name) {
				t.Errorf("%s: config field %s is not in README.md", s.at(c), name)
			}
		}
	})
}

// configField is a field of the network config; those of a backend are named Backend.X.
type configField struct{ name, backend string }

// config returns a network config in which only the field's value may be bad.
func (f configField) config(value string) string {
	fields := map[string]any{"Network": "10.42.0.0/16", "SubnetMin": "10.42.1.0"}
	if option, ok := strings.CutPrefix(f.name, "Backend."); ok {
		fields["Backend"] = map[string]any{"Type": f.backend, option: json.RawMessage(value)}
	} else {
		fields[f.name] = json.RawMessage(value)
	}
	text, _ := json.Marshal(fields)
	return string(text)
}

// readmeConfigFields returns the fields in the README's two tables of the network config.
func readmeConfigFields(t *testing.T) (fields []configField) {
	t.Helper()
	for _, row := range readmeTable(t, "Key") {
		for _, name := range quoted(row[0]) {
			fields = append(fields, configField{name, ""})
		}
	}
	backend := ""
	for _, row := range readmeTable(t, "Backend") {
		if types := quoted(row[0]); len(types) == 1 {
			backend = types[0]
		}
		for _, name := range quoted(row[1]) {
			fields = append(fields, configField{"Backend." + name, backend})
		}
	}
	return fields
}

// TestReadmeHasEachStatusField checks that the README's table of the status has each field of the
// document, and no others.
func TestReadmeHasEachStatusField(t *testing.T) {
	var want, got []string
	var add func(of reflect.Type)
	add = func(of reflect.Type) {
		for of.Kind() == reflect.Pointer || of.Kind() == reflect.Slice {
			of = of.Elem()
		}
		if of.Kind() != reflect.Struct || !strings.HasPrefix(of.PkgPath(), "flanneld/") {
			return
		}
		for f := range of.Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			want = append(want, name)
			add(f.Type)
		}
	}
	add(reflect.TypeFor[status.Document]())
	values := []string{"ok", "degraded", "down", "unknown", "notice", "warning", "severe", "v2", "v3", "failing", "lossy", "off", "null", "udp"}
	for _, row := range readmeTable(t, "Field") {
		for _, name := range append(quoted(row[0]), quoted(row[1])...) {
			if !slices.Contains(values, name) {
				got = append(got, name)
			}
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	want, got = slices.Compact(want), slices.Compact(got)
	if !slices.Equal(got, want) {
		t.Errorf("README.md has\n%q\nthe document has\n%q", got, want)
	}
}

// TestReadmeQuotesMessages checks that what the README's table of symptoms quotes is a message, or
// the part of one before "…".
func TestReadmeQuotesMessages(t *testing.T) {
	var texts []string
	inspect(t, isDaemon, func(_ source, n ast.Node) {
		if l, ok := n.(*ast.BasicLit); ok {
			texts = append(texts, literal(l))
		}
	})
	for _, row := range readmeTable(t, "Symptom") {
		for _, m := range regexp.MustCompile(`"([^"]+?)(?: ?…)?"`).FindAllStringSubmatch(row[0], -1) {
			if !slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(text, m[1]) }) {
				t.Errorf("README.md: %q: must be a part of a message", m[1])
			}
		}
	}
}

// TestReadmeHasEachCheck checks that the README's table of the doctor's checks has a row for each
// check, and none for others.
func TestReadmeHasEachCheck(t *testing.T) {
	var rows, there []string
	for _, row := range readmeTable(t, "Check") {
		rows = append(rows, quoted(row[0])...)
	}
	for _, c := range doctor.Checks() {
		there = append(there, c.ID)
		if !regexp.MustCompile(`^FL(-[A-Z]+)+$`).MatchString(c.ID) {
			t.Errorf("check %q: must be a name such as FL-ETCD-DOWN", c.ID)
		}
	}
	slices.Sort(rows)
	slices.Sort(there)
	if !slices.Equal(rows, there) {
		t.Errorf("README.md has the checks\n%q, want\n%q", rows, there)
	}
}

// TestReadmeNamesTests checks that the tests that the README names exist.
func TestReadmeNamesTests(t *testing.T) {
	there := map[string]bool{}
	for _, root := range []string{".", "../cmd", "../dist"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllStringSubmatch(string(text), -1) {
				there[m[1]] = true
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, row := range readmeTable(t, "Event") {
		for _, name := range quoted(row[2]) {
			if strings.HasPrefix(name, "Test") && !there[name] {
				t.Errorf("README.md: there is no %s", name)
			}
		}
	}
}

// readmeTable returns the cells of the table in README.md whose first heading is given, row by row.
func readmeTable(t *testing.T, heading string) (rows [][]string) {
	t.Helper()
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(readme), "\n| "+heading+" |")
	table, _, _ := strings.Cut(after, "\n\n")
	for _, line := range strings.Split(table, "\n")[1:] {
		if line = strings.TrimPrefix(line, "|"); !strings.HasPrefix(line, "---") {
			rows = append(rows, strings.Split(line, "|"))
		}
	}
	if len(rows) == 0 {
		t.Fatalf("README.md has no table that begins with %q", heading)
	}
	return rows
}

// quoted returns what stands between backticks.
func quoted(cell string) (all []string) {
	for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cell, -1) {
		all = append(all, m[1])
	}
	return all
}
