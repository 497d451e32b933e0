package doctor

import (
	"context"
)

// etcdChecks returns the checks of etcd and what is stored there.
func etcdChecks() []Check {
	return []Check{
		{"FL-ETCD-DOWN", rankStore, checkEtcdAnswers},
	}
}

// checkEtcdAnswers fails if no endpoint of etcd can be used.
func checkEtcdAnswers(ctx context.Context, in *Inputs) Result {
	all, err := in.Endpoints.Get(ctx)
	if err != nil {
		return unknownf("cannot ask etcd: %v", err)
	}
	var up, down []string
	for _, e := range all {
		if e.Err == nil {
			up = append(up, e.URL)
		} else {
			down = append(down, e.URL+": "+e.Err.Error())
		}
	}
	switch {
	case len(up) == 0:
		return failf("start etcd, let this host connect to it, or set -etcd-endpoints", "no endpoint of etcd can be used: %s", and(down))
	case len(down) > 0: // of the default endpoints, one is always down
		return okf("etcd answers at %s, but not at %s", and(up), and(down))
	}
	return okf("etcd answers at %s", and(up))
}
