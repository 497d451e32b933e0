package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"flanneld/pkg/cleanup"
)

// newCleanup returns the command "flanneld cleanup", which removes what a daemon has left on this
// host. Its exit code is 0 if nothing is left, 1 if something is or a daemon runs, 2 for an invalid
// command line.
func newCleanup(in *invocation) *cobra.Command {
	return cleanupCommand(in, func(o cleanup.Options) error {
		if err := cleanup.Run(in.ctx, o, in.stdout, in.stderr); err != nil {
			fmt.Fprintf(in.stderr, "flanneld cleanup: %v\n", err)
			return exitCode(1)
		}
		return nil
	})
}

// cleanupCommand returns the command with what it does with its options.
func cleanupCommand(in *invocation, run func(cleanup.Options) error) *cobra.Command {
	var o cleanup.Options
	c := &cobra.Command{
		Use: "cleanup [--flag=value]...", Args: onlyFlags, Long: cleanupHelp,
		RunE: func(*cobra.Command, []string) error {
			if err := checkSubnetFile(o.SubnetFile); err != nil {
				return err
			}
			return run(o)
		},
	}
	f := c.Flags()
	in.subnetFileFlag(f, &o.SubnetFile, "subnet `file` of the daemon; it names the network")
	f.BoolVar(&o.DryRun, "dry-run", false, "print the commands, and run none")
	f.BoolVar(&o.Files, "files", false, "also remove the subnet file and the files beside it")
	return c
}

const cleanupHelp = `flanneld cleanup removes from this host what flanneld has made for a network: devices, routes,
nexthops and packet filter rules. Containers lose their connections to other hosts. It prints each
step as a command, does not need etcd and does not touch other networks. It refuses to run while a
flanneld of the network runs: stop that one first.

Exit code: 0 if nothing is left, 1 if something is left or a flanneld runs, 2 for a bad command line.`
