package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"

	"flanneld/pkg/status"
)

// daemonChecks returns the checks of the daemon's process, and of what it says itself.
func daemonChecks() []Check {
	return []Check{
		{ID: "FL-DAEMON-DOWN", Rank: rankDaemon, Run: checkDaemonRuns},
		{ID: "FL-DAEMON-HUNG", Rank: rankDaemon + 1, Run: checkDaemonAnswers},
		{ID: "FL-TWO-DAEMONS", Rank: rankDaemon - 1, Run: checkOneDaemon, Explains: []string{"other-flanneld"}},
		{ID: "FL-DRIFT", Rank: rankDrift, Run: checkDrift, Explains: []string{"kernel/", "base/"}},
		{ID: "FL-PEER-SKIPPED", Rank: rankDrift + 1, Run: checkSkipped},
		{ID: "FL-CONDITION", Rank: rankSymptom, After: checkConditions},
	}
}

// checkDaemonRuns fails if no flanneld runs: entries of the kernel stay as they are, and the lease
// expires.
func checkDaemonRuns(ctx context.Context, in *Inputs) Result {
	all, err := in.Daemons.Get(ctx)
	if err != nil {
		return unknownf("cannot find out whether a flanneld runs: %v", err)
	}
	if d, err := in.Status.Get(ctx); err == nil { // it may be hidden in another PID namespace
		return okf("flanneld runs (PID %d)", d.Daemon.PID)
	}
	var pids []string
	for _, d := range all {
		if d.serves(in.Options.SubnetFile) {
			pids = append(pids, fmt.Sprint(d.PID))
		}
	}
	switch {
	case len(all) == 0:
		return failf("systemctl start flanneld; systemctl status flanneld", "no flanneld runs on this host")
	case len(pids) == 0:
		return failf("start it, or run the doctor with the -subnet-file of the one that runs", "no flanneld with the subnet file %s runs on this host", in.Options.SubnetFile)
	}
	return okf("flanneld runs (PID %s)", and(pids))
}

// serves reports whether a daemon has a subnet file. One whose arguments cannot be read may have it.
func (d Daemon) serves(subnetFile string) bool {
	return d.Args == nil && d.Env == nil || path.Clean(d.SubnetFile()) == path.Clean(subnetFile)
}

// checkDaemonAnswers fails if the daemon runs and does not answer.
func checkDaemonAnswers(ctx context.Context, in *Inputs) Result {
	all, err := in.Daemons.Get(ctx)
	if err != nil {
		return unknownf("cannot find out whether a flanneld runs: %v", err)
	}
	at := slices.IndexFunc(all, func(d Daemon) bool { return d.serves(in.Options.SubnetFile) })
	if at < 0 {
		return unknownf("no flanneld runs")
	}
	answer, err := in.Answer.Get(ctx)
	switch pid := all[at].PID; {
	case err == nil && answer == answered:
	case all[at].Stopped:
		return failf(fmt.Sprintf("kill -CONT %d", pid), "flanneld (PID %d) is stopped by a signal", pid)
	case err != nil:
		return unknownf("cannot ask flanneld: %v", err)
	case answer == silent:
		return failf("systemctl restart flanneld", "flanneld runs, and does not answer on its socket within %s", answerLimit)
	case answer == nobody:
		return unknownf("nobody answers on the socket of flanneld: it is another version, or has just been started")
	}
	return okf("flanneld answers")
}

// checkOneDaemon fails if two daemons of this host undo each other's changes, or wait for each
// other.
func checkOneDaemon(ctx context.Context, in *Inputs) Result {
	if d, err := in.Status.Get(ctx); err == nil {
		if c, ok := conditionOf(d, "other-flanneld"); ok {
			return failf("stop one of them, or give each its own -etcd-prefix, -subnet-file and VNI", "%s", c.Text)
		}
	}
	all, err := in.Daemons.Get(ctx)
	if err != nil {
		return unknownf("cannot find out which flannelds run: %v", err)
	}
	for i, a := range all {
		for _, b := range all[:i] {
			switch {
			case a.Args == nil || b.Args == nil || a.Foreign || b.Foreign:
				return unknownf("flannelds run with the PIDs %d and %d, whose settings and network namespaces cannot be read", b.PID, a.PID)
			case path.Clean(a.SubnetFile()) == path.Clean(b.SubnetFile()):
				return failf(fmt.Sprintf("kill %d", a.PID), "two flannelds (PID %d and %d) have one subnet file, %s", b.PID, a.PID, a.SubnetFile())
			case a.setting("etcd-prefix", defaultPrefix) == b.setting("etcd-prefix", defaultPrefix) && a.setting("etcd-endpoints", "") == b.setting("etcd-endpoints", "") &&
				a.setting("etcd-api", "") == b.setting("etcd-api", ""):
				return failf(fmt.Sprintf("kill %d", a.PID), "two flannelds (PID %d and %d) serve one network, under the prefix %s", b.PID, a.PID, a.setting("etcd-prefix", defaultPrefix))
			}
		}
	}
	return okf("no two flannelds have one network or one device")
}

// defaultPrefix is the default of -etcd-prefix.
const defaultPrefix = "/coreos.com/network"

// conditionOf returns the condition with an ID.
func conditionOf(d status.Document, id string) (status.Condition, bool) {
	for _, c := range d.Conditions {
		if c.ID == id || strings.HasSuffix(id, "/") && strings.HasPrefix(c.ID, id) {
			return c, true
		}
	}
	return status.Condition{}, false
}

// checkDrift fails if the kernel is not as the daemon wants it.
func checkDrift(ctx context.Context, in *Inputs) Result {
	d, err := in.Status.Get(ctx)
	if err != nil {
		return unknownf("the daemon, which compares the kernel with what it wants, cannot be asked: %v", err)
	}
	for _, id := range []string{"base/", "kernel/"} {
		if c, ok := conditionOf(d, id); ok && c.Severity != status.Notice {
			return failf(c.Remedy, "%s", c.Text)
		}
	}
	if d.Drift == nil {
		return unknownf("the daemon has not compared the kernel with what it wants yet")
	}
	if *d.Drift == 0 {
		return okf("the kernel has everything that the daemon wants")
	}
	// It is repaired within seconds; what remains is a fault.
	later, err := in.Later.Get(ctx)
	if err != nil || later.Drift == nil {
		return unknownf("%d objects of the kernel were not as wanted, and the daemon cannot be asked again: %v", *d.Drift, err)
	}
	if *later.Drift == 0 {
		return okf("the kernel has everything that the daemon wants")
	}
	var kinds []string
	for kind, n := range later.DriftKinds {
		kinds = append(kinds, fmt.Sprintf("%d %s", n, kind))
	}
	return failf("journalctl -u flanneld -n 50 # says which and why", "%d objects of the kernel are not as the daemon wants them: %s", *later.Drift, and(distinct(kinds)))
}

// checkSkipped fails if the daemon leaves out peers, because their leases cannot be used.
func checkSkipped(ctx context.Context, in *Inputs) Result {
	d, err := in.Status.Get(ctx)
	if err != nil {
		return unknownf("the daemon cannot be asked which hosts it leaves out: %v", err)
	}
	fresh := false
	for i := range d.Peers {
		fresh = fresh || d.Peers[i].State == status.Unprogrammed
	}
	if fresh {
		if d, err = in.Later.Get(ctx); err != nil { // entries of a new peer are made within moments
			return unknownf("the daemon cannot be asked again which entries are missing: %v", err)
		}
	}
	var skipped, missing []string
	for i := range d.Peers {
		p := &d.Peers[i]
		text := fmt.Sprintf("%s (%s): %s", p.Subnet, p.PublicIP, p.Reason)
		switch p.State {
		case status.Skipped:
			skipped = append(skipped, text)
		case status.Unprogrammed:
			missing = append(missing, text)
		}
	}
	switch {
	case len(skipped) > 0:
		return failf("correct or delete the lease of that host", "the daemon leaves out %d of %d peers: %s", len(skipped), len(d.Peers), and(skipped[:min(3, len(skipped))]))
	case len(missing) > 0:
		return failf("journalctl -u flanneld -n 50 # says which and why", "entries of %d of %d peers could not be made: %s", len(missing), len(d.Peers), and(missing[:min(3, len(missing))]))
	}
	return okf("none of %d peers is left out", len(d.Peers))
}

// checkConditions fails if the daemon reports something that no failed check is about.
func checkConditions(ctx context.Context, in *Inputs, explained func(id string) bool) Result {
	d, err := in.Status.Get(ctx)
	if err != nil {
		return unknownf("the daemon cannot be asked what it finds wrong: %v", err)
	}
	var texts, notices []string
	var remedy string
	for _, c := range d.Conditions {
		switch {
		case c.Severity == status.Notice:
			notices = append(notices, c.Text)
		case !explained(c.ID):
			texts = append(texts, c.Text)
			if remedy == "" {
				remedy = c.Remedy
			}
		}
	}
	switch {
	case len(texts) > 0:
		return failf(remedy, "the daemon reports: %s", strings.Join(texts, "; "))
	case len(notices) > 0:
		return okf("the daemon reports only: %s", strings.Join(notices, "; "))
	case len(d.Conditions) > 0:
		return okf("what the daemon reports is explained by other checks")
	}
	return okf("the daemon reports nothing wrong")
}

// Answer is how a daemon reacts to a request on its socket.
type Answer int

const (
	nobody   Answer = iota // no process listens
	answered               // it answers, with whatever status
	silent                 // it accepts the connection and does not answer in time
)

// errDown is the reason why a daemon that is down has no status.
var errDown = errors.New("no flanneld answers")

// peerAddress returns the address that is pinged through the overlay: as package prober does, the
// network address of a subnet, which is that of the peer's device, or, for backends without a
// device, the first address after it, which is that of the bridge.
func peerAddress(subnet netip.Prefix, hasDevice bool) netip.Addr {
	if hasDevice {
		return subnet.Addr()
	}
	return subnet.Addr().Next()
}
