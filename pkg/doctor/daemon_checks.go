package doctor

import (
	"context"
	"fmt"
)

// daemonChecks returns the checks of the daemon's process.
func daemonChecks() []Check {
	return []Check{
		{"FL-DAEMON-DOWN", rankDaemon, checkDaemonRuns},
	}
}

// checkDaemonRuns fails if no flanneld runs: entries of the kernel stay as they are, and the lease
// expires.
func checkDaemonRuns(ctx context.Context, in *Inputs) Result {
	all, err := in.Daemons.Get(ctx)
	if err != nil {
		return unknownf("cannot find out whether a flanneld runs: %v", err)
	}
	if len(all) == 0 {
		return failf("systemctl start flanneld; systemctl status flanneld", "no flanneld runs on this host")
	}
	var pids []string
	for _, d := range all {
		pids = append(pids, fmt.Sprint(d.PID))
	}
	return okf("flanneld runs (PID %s)", and(pids))
}
