package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"flanneld/pkg/cleanup"
)

// runCleanup is "flanneld cleanup": it removes what a daemon has left on this host. Its exit code
// is 0 if nothing is left, 1 if something is or a daemon runs, 2 for an invalid command line.
func runCleanup(ctx context.Context, args, env []string, stdout, stderr io.Writer) int {
	o, help, err := parseCleanup(args, env)
	switch {
	case errors.Is(err, errHelp):
		fmt.Fprint(stdout, help)
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "flanneld cleanup: %v\nRun 'flanneld cleanup --help' for the flags there are.\n", err)
		return 2
	}
	if err := cleanup.Run(ctx, o, stdout, stderr); err != nil {
		fmt.Fprintf(stderr, "flanneld cleanup: %v\n", err)
		return 1
	}
	return 0
}

func parseCleanup(args, env []string) (o cleanup.Options, help string, err error) {
	f := newFlags("flanneld cleanup")
	f.StringVar(&o.SubnetFile, "subnet-file", cleanup.DefaultSubnetFile, "subnet `file` of the daemon; it names the network")
	f.BoolVar(&o.DryRun, "dry-run", false, "print the commands, and run none")
	f.BoolVar(&o.Files, "files", false, "also remove the subnet file and the files beside it")
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "FLANNELD_SUBNET_FILE="); ok && v != "" {
			o.SubnetFile = v
		}
	}
	help = cleanupHelp + f.FlagUsagesWrapped(100)
	if err = parseFlags(f, args); err == nil && o.SubnetFile == "" {
		err = bad("subnet-file", "", "a path")
	}
	return o, help, err
}

const cleanupHelp = `flanneld cleanup removes from this host what flanneld has made for a network: devices, routes,
nexthops and packet filter rules. Containers lose their connections to other hosts. It prints each
step as a command, does not need etcd and does not touch other networks. It refuses to run while a
flanneld of the network runs: stop that one first.

Usage: flanneld cleanup [--flag=value]...

Exit code: 0 if nothing is left, 1 if something is left or a flanneld runs, 2 for a bad command line.

`
