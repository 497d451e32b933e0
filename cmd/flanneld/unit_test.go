package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"flanneld/pkg/lab"
)

// unit is that which is shipped.
var unit = sync.OnceValues(func() (*lab.Unit, error) { return lab.ReadUnit("../../dist/flanneld.service") })

// underTheUnit begins the names of the tests in which every flanneld has what its unit leaves it.
const underTheUnit = "TestUnderTheUnit"

// TestUnderTheUnit runs tests of repairs, restarts, packet filter rules, status and probes again, with
// the capabilities, system calls and places to write that dist/flanneld.service leaves a
// flanneld.
func TestUnderTheUnit(t *testing.T) {
	t.Parallel()
	need(t, "systemd-analyze")
	for _, test := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"TestRestart", TestRestart},
		{"TestUplinkMTU", TestUplinkMTU},
		{"TestUDPRepair", TestUDPRepair},
		{"TestMasquerade", TestMasquerade},
		{"TestDockerRules", TestDockerRules},
		{"TestRuleThatIPTablesCannotRead", TestRuleThatIPTablesCannotRead},
		{"TestForeignPacketFilters", TestForeignPacketFilters},
		{"TestOwnedTables", TestOwnedTables},
		{"TestTakenPlaces", TestTakenPlaces},
		{"TestClonedHost", TestClonedHost},
		{"TestStatusFollowsTheHost", TestStatusFollowsTheHost},
		{"TestMTUFaultIsNamed", TestMTUFaultIsNamed},
		{"directory of the subnet file", testRemovedRuntimeDirectory},
	} {
		t.Run(test.name, test.run)
	}
}

func TestUnderTheUnitAlone(t *testing.T) {
	// Not parallel, as these tests.
	need(t, "systemd-analyze")
	t.Run("TestRepair", TestRepair)
	t.Run("TestUDPRestart", TestUDPRestart)
	t.Run("TestRulesRepair", TestRulesRepair)
}

// testRemovedRuntimeDirectory removes /run/flannel, which only systemd can create again with write
// access for flanneld.
func testRemovedRuntimeDirectory(t *testing.T) {
	c, h := oneHost(t, vxlanConfig)
	start := func() *lab.Process {
		p := c.start(h)
		return p
	}
	p := start()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	c.must(err)
	for _, line := range []string{"CapEff:\t0000000000003004", "CapBnd:\t0000000000003004", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(string(status), line+"\n") {
			t.Errorf("/proc/PID/status lacks %q:\n%s", line, status)
		}
	}
	c.must(os.Remove(h.SubnetFile))
	c.within(3*time.Second, "the file", func() error { _, err := os.Stat(h.SubnetFile); return err })
	c.must(os.RemoveAll(filepath.Dir(h.SubnetFile)))
	c.saysTimes(h.Flanneld(), 1, "failed to write subnet file, will retry", "read-only file system", `command="systemctl restart flanneld"`)
	c.stop(p)
	p = start()
	if strings.Contains(p.Logs(), "level=ERROR") {
		t.Error(p.Logs())
	}
}
