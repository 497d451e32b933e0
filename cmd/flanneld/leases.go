package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"flanneld/pkg/operator"
	"flanneld/pkg/status"

	"github.com/spf13/cobra"
)

// newLeases returns the command "flanneld leases".
func newLeases(in *invocation) *cobra.Command {
	return newParent("leases", leasesHelp, newLeasesList(in), newLeasesReserve(in), newLeasesRelease(in))
}

const leasesHelp = `flanneld leases shows and changes the leases in etcd: which host has which subnet. The settings for
etcd are those of the flanneld that runs, else those of its unit; environment and flags override them.

  flanneld leases list
  flanneld leases reserve 10.42.9.0/24 --public-ip=192.0.2.19   # for this host, for ever
  flanneld leases release 10.42.9.0/24                          # of a host that does not come back`

func newLeasesList(in *invocation) *cobra.Command {
	asJSON := false
	c := &cobra.Command{Use: "list [--flag=value]...", Short: "list all leases", Args: onlyFlags, Long: `flanneld leases list prints all leases: the subnet, the public IP of its host, the backend, and the
time until it expires, unless it is reserved. Entries that cannot be read follow.

Exit code: 0, 2 for a bad command line, 3 if etcd does not answer.`}
	c.Flags().BoolVar(&asJSON, "json", false, "print the leases as JSON; README.md describes its fields")
	return in.operate(c, "leases list", func(o *operatorCommand, _ []string) error {
		n, err := o.open()
		if err != nil {
			return err
		}
		defer n.Close()
		all, err := n.Leases(o.ctx)
		if err != nil {
			return err
		}
		if _, err := n.Config(); err != nil && len(all.Leases) == 0 {
			complain(o.stderr, o.name+": warning", err)
		}
		if asJSON {
			return printJSON(o.stdout, all)
		}
		return printText(o.stdout, all.Text(status.Style{Aligned: isTerminal(o.stdout) && os.Getenv("TERM") != "dumb"}))
	})
}

func newLeasesReserve(in *invocation) *cobra.Command {
	asJSON, publicIP := false, ""
	c := &cobra.Command{Use: "reserve [--flag=value]... SUBNET", Short: "reserve a subnet for a host", Args: oneSubnet, ValidArgsFunction: cobra.NoFileCompletions, Long: `flanneld leases reserve reserves SUBNET for a host: the one that has it, or the one with the given
public IP. A reservation does not expire. A host that has no other lease takes it when flanneld
starts there. Any flanneld and any version of the original can read it; versions from 0.18 on turn it
into an ordinary lease when the host takes it.

  flanneld leases reserve 10.42.9.0/24
  flanneld leases reserve 10.42.9.0/24 --public-ip=192.0.2.19

Exit code: 0 if it is reserved, 1 if it cannot be, 2 for a bad command line, 3 if etcd does not
answer.`}
	c.Flags().StringVar(&publicIP, "public-ip", "", "`address` of the host, as in its lease; by default of the host that has the subnet")
	c.Flags().BoolVar(&asJSON, "json", false, "print the result as JSON; README.md describes its fields")
	return in.operate(c, "leases reserve", func(o *operatorCommand, args []string) error {
		subnet, err := parseSubnet(args[0])
		if err != nil {
			return err
		}
		host, err := ipv4("public-ip", publicIP)
		if err != nil {
			return usageError{err}
		}
		return o.change(asJSON, func(n *operator.Network) (operator.Change, error) { return n.Reserve(o.ctx, subnet, host) })
	})
}

func newLeasesRelease(in *invocation) *cobra.Command {
	asJSON, yes := false, false
	c := &cobra.Command{Use: "release [--flag=value]... SUBNET", Short: "release the lease of a host that is gone", Args: oneSubnet, ValidArgsFunction: cobra.NoFileCompletions, Long: `flanneld leases release ends the lease of SUBNET, or its reservation. The other hosts remove the host
at once, and another host may get the subnet. It refuses the lease of a host that answers a ping, or
ARP: a flanneld that runs there would restore it.

  flanneld leases release 10.42.9.0/24

Exit code: 0 if it is released, 1 if it is not, 2 for a bad command line, 3 if etcd does not answer.`}
	c.Flags().BoolVar(&yes, "yes", false, "also if the host is alive, or if the entry is invalid")
	c.Flags().BoolVar(&asJSON, "json", false, "print the result as JSON; README.md describes its fields")
	return in.operate(c, "leases release", func(o *operatorCommand, args []string) error {
		subnet, err := parseSubnet(args[0])
		if err != nil {
			return err
		}
		return o.change(asJSON, func(n *operator.Network) (operator.Change, error) { return n.Release(o.ctx, subnet, yes) })
	})
}

// oneSubnet is the Args of a command with a subnet.
func oneSubnet(_ *cobra.Command, args []string) error {
	if len(args) == 0 {
		return errors.New("SUBNET: must be an IPv4 subnet such as 10.42.9.0/24")
	}
	return strayArgument(args[1:])
}

func parseSubnet(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil || !p.Addr().Is4() || p != p.Masked() || p.Bits() == 0 || p.Bits() > 31 {
		return p, usageError{fmt.Errorf("SUBNET: %q: must be an IPv4 subnet such as 10.42.9.0/24", text)}
	}
	return p, nil
}

// change changes a lease and prints the result.
func (o *operatorCommand) change(asJSON bool, do func(*operator.Network) (operator.Change, error)) error {
	n, err := o.open()
	if err != nil {
		return err
	}
	defer n.Close()
	c, err := do(n)
	if err != nil {
		return err
	}
	if asJSON {
		o.report(printJSON(o.stdout, c))
	} else {
		o.report(printText(o.stdout, changeText(c)))
	}
	return nil
}

// changeText returns a change of a lease for people.
func changeText(c operator.Change) string {
	of := ""
	if c.PublicIP.IsValid() {
		of = " for " + c.PublicIP.String()
		if c.Result == operator.Released {
			of = " of " + c.PublicIP.String()
		}
	}
	text := fmt.Sprintf("%s%s: %s\n", c.Subnet, of, c.Result)
	for _, note := range c.Notes {
		text += "note: " + note + "\n"
	}
	return text
}
