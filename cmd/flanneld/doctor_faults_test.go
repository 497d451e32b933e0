package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/doctor"
	"flanneld/pkg/lab"
)

// fault is a row of the table of faults: a cause, how it is made, and what the doctor has to say.
type fault struct {
	name string
	id   string   // of the check that must fail, and be the first that does
	also []string // checks that may fail too, because what they find is true as well
	said []string // parts of the summary and the remedy; may be empty

	config string                       // network config; default vxlanConfig
	hosts  int                          // default 2
	lab    func(*testing.T) lab.Options // of the cluster, besides Hosts; may be nil
	args   []string                     // of all daemons
	needs  []string                     // programs without which the row is skipped

	// before, if set, is called before any daemon is started. start, if set, is called instead of
	// starting all daemons and waiting until the containers of all hosts reach each other.
	before, start func(c *faultCluster)
	// make makes the fault on a network that works. If nil, there is one since the start.
	make func(c *faultCluster)
	// cures, if set, mends the fault; then no check may fail any more.
	cure func(c *faultCluster)
}

// faultCluster is the network of one row. The doctor runs on the first host.
type faultCluster struct {
	*cluster
	h, peer *lab.Host
	flags   []string // further flags of the doctor
	// patience is the time that the fault takes to be seen; default 40 s.
	patience time.Duration
}

// faults returns the table. Each area has its own file.
func faults() []fault {
	return slices.Concat(registryFaults(), filterFaults(), settingFaults(), pathFaults())
}

// TestDoctorNamesCause makes each fault, and checks that the doctor names it first and that nothing
// else it says is wrong.
func TestDoctorNamesCause(t *testing.T) {
	t.Parallel()
	for _, f := range faults() {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			need(t, append([]string{"ip"}, f.needs...)...)
			f.run(t)
		})
	}
}

// TestEachCheckHasAFault checks that each check of the doctor is the first in a row of the table of
// faults, or in a scenario of hosts with systemd. For the others there is a reason.
func TestEachCheckHasAFault(t *testing.T) {
	never := map[string]string{
		"FL-ALONE":    "never fails",
		"FL-CHECKSUM": "needs a kernel before 5.7 without the fixes of its series, as no supported release of Debian has; checkChecksum says what was measured with such a fault",
	}
	const systemFile = "../../dist/system_doctor_test.go" // make test-system
	scenarios, err := os.ReadFile(systemFile)
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]bool{}
	for _, f := range append(faults(), machineFaults()...) {
		rows[f.id] = true
	}
	if len(rows) < 20 {
		t.Errorf("%d different causes", len(rows))
	}
	for _, c := range doctor.Checks() {
		if !rows[c.ID] && !strings.Contains(string(scenarios), `"`+c.ID+`"`) && never[c.ID] == "" {
			t.Errorf("%s: there must be a row with its cause, or a scenario in %s", c.ID, systemFile)
		}
		if rows[c.ID] && never[c.ID] != "" {
			t.Errorf("%s: has a row, and a reason to have none", c.ID)
		}
	}
}

func (f fault) run(t *testing.T) {
	var o lab.Options
	if f.lab != nil {
		o = f.lab(t)
	}
	o.Hosts = max(f.hosts, 2)
	c := &faultCluster{cluster: newCluster(t, o)}
	c.h, c.peer = c.Hosts[0], c.Hosts[1]
	if f.config == "" {
		f.config = vxlanConfig
	}
	if f.before != nil {
		f.before(c)
	} else {
		c.put("config", f.config)
	}
	if f.start != nil {
		f.start(c)
	} else {
		c.must(c.StartAll(c.ctx, f.args...))
		c.connect()
	}
	if f.make != nil {
		f.make(c)
	}
	// Some symptoms take a moment.
	c.within(cmp.Or(c.patience, 40*time.Second), "the cause", func() error { return f.check(c.doctor(c.h)) })
	if f.cure == nil {
		return
	}
	f.cure(c)
	c.within(40*time.Second, "the cure", func() error {
		r := c.doctor(c.h)
		if r.Failed() {
			return fmt.Errorf("there is still something wrong:\n%s", text(r))
		}
		return nil
	})
}

// check compares a report with the row.
func (f fault) check(r doctor.Report) error {
	for i, c := range r.Findings {
		switch {
		case i == 0 && (c.ID != f.id || c.Status != doctor.Fail):
			return fmt.Errorf("the first is %s, want %s:\n%s", c.ID, f.id, text(r))
		case c.Status == doctor.Fail && c.ID != f.id && !slices.Contains(f.also, c.ID):
			return fmt.Errorf("%s fails too:\n%s", c.ID, text(r))
		}
	}
	for _, want := range f.said {
		if c := r.Findings[0]; !strings.Contains(c.Summary, want) && !strings.Contains(c.Remedy, want) {
			return fmt.Errorf("%q is missing in what %s says:\n%s", want, c.ID, text(r))
		}
	}
	return nil
}

func text(r doctor.Report) string {
	var b strings.Builder
	doctor.Style{}.Text(&b, r)
	return b.String()
}

// doctor runs the doctor on a host and returns its report.
func (c *faultCluster) doctor(h *lab.Host) (r doctor.Report) {
	c.t.Helper()
	args := append([]string{"doctor", "--json", "-subnet-file=" + h.SubnetFile}, c.flags...)
	if p := h.Flanneld(); p == nil || p.Exited() {
		args = append(args, "-etcd-endpoints="+c.Etcd.Endpoint())
	}
	out, code := c.runDoctor(h, args...)
	if err := json.Unmarshal(out, &r); err != nil || code != doctorFine && code != doctorProblem || r.Failed() != (code == doctorProblem) {
		c.t.Fatalf("doctor on %s: exit code %d, %v: %s", h.Name, code, err, out)
	}
	return r
}

// runDoctor runs the doctor on a host, for as long as it may take at the most, and returns its
// output and exit code.
func (c *faultCluster) runDoctor(h *lab.Host, args ...string) (out []byte, code int) {
	c.t.Helper()
	out, code, err := c.tryDoctor(h, args...)
	c.must(err)
	return out, code
}

// tryDoctor is runDoctor for several goroutines.
func (c *faultCluster) tryDoctor(h *lab.Host, args ...string) (out []byte, code int, err error) {
	path, err := built()
	if err != nil {
		return nil, 0, err
	}
	ctx, cancel := context.WithTimeout(c.ctx, slow(15*time.Second))
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "XTABLES_LOCKFILE="+strings.TrimSuffix(h.SubnetFile, "subnet.env")+"xtables.lock")
	if c.path != "" {
		cmd.Env = append(cmd.Env, "PATH="+c.path)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	err = h.Do(func() (err error) {
		out, err = cmd.Output()
		return err
	})
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() < 0 {
		return nil, 0, fmt.Errorf("doctor on %s: %w: %s%s", h.Name, err, out, stderr.String())
	}
	return append(out, stderr.String()...), cmd.ProcessState.ExitCode(), nil
}
