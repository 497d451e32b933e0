// Package prometheus tests the alert rules and the dashboard beside it with Prometheus' own
// parser and query engine.
package prometheus

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
)

func newParser() parser.Parser { return parser.NewParser(parser.Options{}) }

// rules returns the alert rules by name.
func rules(t *testing.T) map[string]rulefmt.Rule {
	t.Helper()
	groups, errs := rulefmt.ParseFile("alerts.yaml", false, model.UTF8Validation, newParser(), slog.New(slog.DiscardHandler))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	all := map[string]rulefmt.Rule{}
	for _, g := range groups.Groups {
		for _, r := range g.Rules {
			all[r.Alert] = r
		}
	}
	return all
}

// TestRulesAreValid: by the parser that Prometheus loads them with; and each has what an operator
// needs.
func TestRulesAreValid(t *testing.T) {
	for name, r := range rules(t) {
		if r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
			t.Errorf("%s has no summary or no description", name)
		}
		if s := r.Labels["severity"]; s != "warning" && s != "critical" {
			t.Errorf("%s has the severity %q", name, s)
		}
	}
}

// TestDashboardQueriesAreValid: each panel has queries that Prometheus can parse.
func TestDashboardQueriesAreValid(t *testing.T) {
	text, err := os.ReadFile("flannel.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Title  string
		Panels []struct {
			Type, Title string
			Targets     []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil || dashboard.Title == "" {
		t.Fatal(dashboard, err)
	}
	queries := 0
	for _, p := range dashboard.Panels {
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q has no query", p.Title)
		}
		for _, target := range p.Targets {
			queries++
			expr := strings.NewReplacer("$job", ".*", "$instance", ".*", "$__rate_interval", "5m").Replace(target.Expr)
			if _, err := newParser().ParseExpr(expr); err != nil || strings.Contains(expr, "$") {
				t.Errorf("panel %q: %s: %v", p.Title, expr, err)
			}
		}
	}
	if queries < 20 {
		t.Errorf("only %d queries found", queries)
	}
}

// hosts returns the series of n hosts, a sample a minute.
func hosts(n int, series ...string) (all []string) {
	for i := range n {
		for _, s := range series {
			name, values, _ := strings.Cut(s, " ")
			name, labels, _ := strings.Cut(strings.TrimSuffix(name, "}"), "{")
			all = append(all, fmt.Sprintf(`%s{job="flannel",instance="h%d",%s} %s`, name, i+1, labels, values))
		}
	}
	return all
}

// TestRulesFire: after three hours of samples.
func TestRulesFire(t *testing.T) {
	healthy := []string{
		"flannel_ready 1x180", "flannel_store_up 1x180", "flannel_peers 9x180", "flannel_peers_unreachable 0x180",
		"flannel_subnets 255x180", "flannel_subnets_used 10x180", "flannel_lease_conflicts_total 0x180",
		`flannel_drift_objects{kind="route"} 0x180`, `flannel_drift_objects{kind="link"} 0x180`,
		`flannel_peers_skipped{reason="conflict"} 0x180`, `flannel_lease_writes_total{result="failed"} 0x180`,
		"flannel_lease_expires_timestamp_seconds 86400x180",
	}
	// with returns ten healthy hosts, except for some series, which are written with their host.
	with := func(changed ...string) []string {
		key := func(s string) string { name, _, _ := strings.Cut(s, " "); return name }
		all := hosts(10, healthy...)
		for _, c := range changed {
			host, s, _ := strings.Cut(c, ":")
			s = strings.ReplaceAll(hosts(1, s)[0], `"h1"`, `"`+host+`"`)
			all = slices.DeleteFunc(all, func(have string) bool { return key(have) == key(s) })
			all = append(all, s)
		}
		return all
	}
	others := func(s string) (all []string) {
		for i := range 9 {
			all = append(all, fmt.Sprintf("h%d:%s", i+1, s))
		}
		return all
	}
	// Times are those since the first sample. A lease is renewed an hour before its end.
	const renewed, old = "flannel_lease_expires_timestamp_seconds 12000x139 98400x40", "flannel_lease_expires_timestamp_seconds 12000x180"
	for _, c := range []struct {
		name   string
		series []string
		fire   map[string]int // number of alerts by rule
	}{
		{"healthy", with(), nil},
		{"renewed in time", with("h1:" + renewed), nil},
		{"reservation", with("h1:flannel_lease_expires_timestamp_seconds" + strings.Repeat(" +Inf", 181)), nil},
		{"etcd away, lease ends", with("h1:"+old, "h1:flannel_store_up 0x180"), map[string]int{"FlannelLeaseExpiresSoon": 1, "FlannelLeaseOverdue": 1, "FlannelStoreAway": 1}},
		{"etcd refuses renewals", with("h1:flannel_lease_expires_timestamp_seconds 14400x180", `h1:flannel_lease_writes_total{result="failed"} 0+1x180`), map[string]int{"FlannelLeaseExpiresSoon": 1}},
		{"not renewed for another reason", with("h1:" + old), map[string]int{"FlannelLeaseOverdue": 1}},
		{"short leases", with("h1:flannel_lease_expires_timestamp_seconds 600+60x180"), nil},
		{"etcd away for half an hour", with("h1:flannel_store_up 1x150 0x30"), nil},
		{"etcd away", with("h1:flannel_store_up 1x110 0x70"), map[string]int{"FlannelStoreAway": 1}},
		{"drift that is repaired", with(`h1:flannel_drift_objects{kind="route"} 0x177 3x2`), nil},
		{"drift", with(`h1:flannel_drift_objects{kind="route"} 3x180`, `h1:flannel_drift_objects{kind="link"} 1x180`), map[string]int{"FlannelDrift": 1}},
		{"conflict", with("h1:flannel_lease_conflicts_total 0x175 1x4"), map[string]int{"FlannelLeaseConflict": 1}},
		{"conflict long ago", with("h1:flannel_lease_conflicts_total 0x100 1x80"), nil},
		{"skipped peer, seen by all", with(append(others(`flannel_peers_skipped{reason="conflict"} 1x180`), `h10:flannel_peers_skipped{reason="conflict"} 0x180`)...), map[string]int{"FlannelPeersSkipped": 1}},
		{"pool", with("h1:flannel_subnets_used 230x180"), map[string]int{"FlannelPoolAlmostFull": 1}},
		{"pool, nearly", with("h1:flannel_subnets_used 229x180"), nil},
		{"a host is off", with(others("flannel_peers_unreachable 1x180")...), map[string]int{"FlannelPeersUnreachable": 1}},
		{"a host is cut off", with(append(others("flannel_peers_unreachable 1x180"), "h10:flannel_peers_unreachable 9x180")...), map[string]int{"FlannelPeersUnreachable": 1, "FlannelHostCutOff": 1}},
		{"half of the hosts are off", with("h1:flannel_peers_unreachable 5x180", "h2:flannel_peers_unreachable 5x180", "h3:flannel_peers_unreachable 5x180",
			"h4:flannel_peers_unreachable 5x180", "h5:flannel_peers_unreachable 5x180", "h6:flannel_peers_unreachable 5x180"), map[string]int{"FlannelPeersUnreachable": 1}},
		{"no subnet", with("h1:flannel_ready 0x180"), map[string]int{"FlannelNotReady": 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := load(t, c.series)
			fired := map[string]int{}
			for name, r := range rules(t) {
				if n := s.alerts(t, r, 179*time.Minute); n > 0 {
					fired[name] = n
				}
			}
			if !maps.Equal(fired, c.fire) {
				t.Errorf("fired: %v, want %v", fired, c.fire)
			}
		})
	}
}

// TestEachRuleFires: TestRulesFire has a case for each rule.
func TestEachRuleFires(t *testing.T) {
	text, err := os.ReadFile("rules_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for name := range rules(t) {
		if !strings.Contains(string(text), `"`+name+`": `) {
			t.Errorf("no case has %s fire", name)
		}
	}
}

// alerts returns the number of alerts that a rule fires at a time, if it is evaluated each minute.
func (s *samples) alerts(t *testing.T, r rulefmt.Rule, at time.Duration) (firing int) {
	t.Helper()
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 1e6, Timeout: time.Minute, Parser: newParser()})
	t.Cleanup(func() { engine.Close() })
	held := map[string]time.Duration{} // since when alerts are pending
	for now := at - time.Duration(r.For) - time.Minute; now <= at; now += time.Minute {
		q, err := engine.NewInstantQuery(t.Context(), s, nil, r.Expr, time.Unix(0, 0).Add(now))
		if err != nil {
			t.Fatal(r.Alert, err)
		}
		result := q.Exec(t.Context())
		v, err := result.Vector()
		if err != nil {
			t.Fatal(r.Alert, err)
		}
		still := map[string]time.Duration{}
		firing = 0
		for _, sample := range v {
			key := sample.Metric.String()
			since, pending := held[key]
			if !pending {
				since = now
			}
			if still[key] = since; now-since >= time.Duration(r.For) {
				firing++
			}
		}
		held = still
		q.Close()
	}
	return firing
}
