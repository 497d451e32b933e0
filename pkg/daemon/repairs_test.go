package daemon

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"
)

// TestLastRepairsAreKept: the latest first, a limited number of them, with examples of a limited
// length. A list that was returned does not change.
func TestLastRepairsAreKept(t *testing.T) {
	d := ofMany(t, 1, false)
	if got := d.status(); got.LastRepair != nil || got.Repairs == nil || len(got.Repairs) > 0 {
		t.Errorf("before the first: %+v, %+v", got.LastRepair, got.Repairs)
	}
	for i := range 3 * maxRepairs {
		d.repairs.add(fmt.Sprint(i), "ip route replace 10.42.1.0/24")
	}
	before := d.status()
	if r := before.Repairs; len(r) != maxRepairs || r[0].What != "59" || r[maxRepairs-1].What != "40" || *before.LastRepair != r[0] {
		t.Errorf("%+v, last %+v", r, before.LastRepair)
	}
	d.repairs.add("long", strings.Repeat("é", maxExample))
	got := d.status()
	if before.Repairs[0].What != "59" || got.Repairs[0].What != "long" || got.Repairs[1].What != "59" {
		t.Errorf("before %+v, now %+v", before.Repairs[0], got.Repairs[:2])
	}
	if e := got.Repairs[0].Example; len(e) > maxExample+len("…") || !utf8.ValidString(strings.TrimSuffix(e, "…")) {
		t.Errorf("%d bytes: %q", len(e), e)
	}
}
