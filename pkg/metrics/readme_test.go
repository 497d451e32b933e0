package metrics

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestReadmeListsMetrics: the README's table has each metric with its type, its labels, their known
// values, and its help text; and no other.
func TestReadmeListsMetrics(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(readme), "\n| Metric |")
	table, _, _ := strings.Cut(after, "\n\n")
	var has, want []string
	for _, line := range strings.Split(table, "\n")[2:] {
		has = append(has, strings.Join(strings.Fields(line), " "))
	}
	values := labelValues(t)
	for _, m := range metrics(true) {
		var labels []string
		for _, l := range m.labels {
			text := "`" + l + "`"
			if known := values[m.name+" "+l]; !slices.Contains([]string{"peer", "version", "by"}, l) {
				text += ": `" + strings.Join(slices.Sorted(maps.Keys(known)), "`, `") + "`"
			}
			labels = append(labels, text)
		}
		row := fmt.Sprintf("| `flannel_%s` | %s | %s | %s |", m.name, m.kind, strings.Join(labels, "; "), m.help)
		want = append(want, strings.Join(strings.Fields(row), " "))
	}
	for _, row := range want {
		if !slices.Contains(has, row) {
			t.Errorf("README.md has no row %s", row)
		}
	}
	if len(has) != len(want) {
		t.Errorf("README.md has %d metrics, want %d", len(has), len(want))
	}
}

// labelValues returns the known values of each label, by metric and label.
func labelValues(t *testing.T) map[string]map[string]bool {
	t.Helper()
	values := map[string]map[string]bool{}
	for _, backend := range backends {
		v := all(backend, 1)
		delete(v.Loop.Skipped, "new reason")
		for name, f := range scrape(t, v, true) {
			for _, m := range f.GetMetric() {
				for _, l := range m.GetLabel() {
					key := strings.TrimPrefix(name, "flannel_") + " " + l.GetName()
					if values[key] == nil {
						values[key] = map[string]bool{}
					}
					values[key][l.GetValue()] = true
				}
			}
		}
	}
	return values
}

// TestNamedMetricsExist: each metric that the alert rules, the dashboard and the README name exists,
// and the dashboard has all of them.
func TestNamedMetricsExist(t *testing.T) {
	exists := map[string]bool{}
	for _, m := range metrics(false) {
		name := "flannel_" + m.name
		exists[name] = true
		if m.kind == summary {
			exists[name+"_sum"], exists[name+"_count"] = true, true
		}
	}
	shown := map[string]bool{}
	for _, path := range []string{"../../README.md", "../../dist/prometheus/alerts.yaml", "../../dist/prometheus/flannel.json"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		named := 0
		for _, name := range regexp.MustCompile(`\bflannel_[a-z_]+`).FindAllString(string(text), -1) {
			if named++; !exists[name] {
				t.Errorf("%s names %s, which does not exist", path, name)
			}
			if strings.HasSuffix(path, ".json") {
				shown[strings.TrimSuffix(strings.TrimSuffix(name, "_sum"), "_count")] = true
			}
		}
		if named == 0 {
			t.Errorf("%s names no metric", path)
		}
	}
	for _, m := range metrics(false) {
		if !shown["flannel_"+m.name] {
			t.Errorf("the dashboard does not show flannel_%s", m.name)
		}
	}
}
