// Package cleanup removes from this host what a daemon has created for a network and left: devices,
// routes, nexthops, packet filter rules and, if wanted, files.
//
// It does not need etcd: the network is read from the subnet file or the claim beside it.
// Invariant: it removes nothing that does not provably belong to that network, and nothing while a
// daemon of the network runs.
package cleanup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/firewall"
	"flanneld/pkg/firewalld"
	"flanneld/pkg/iptables"
	"flanneld/pkg/kernel"
	"flanneld/pkg/nftables"
	"flanneld/pkg/presence"
	"flanneld/pkg/subnetenv"
)

// maxLockAttempts limits the attempts to remove rules while another program holds the lock of
// iptables. Each takes at least a second.
const maxLockAttempts = 10

// firewalldTimeout limits the wait for firewalld, which may be loading its configuration.
const firewalldTimeout = 15 * time.Second

// Options are the options of Run.
type Options struct {
	SubnetFile string // names the network, with the claim beside it
	Files      bool   // also remove these files
	DryRun     bool   // only print the commands
}

// Run removes devices with everything on them, routes, nexthops, packet filter rules of both
// variants of iptables and of nftables, and the source in firewalld. Each step is written to out as
// a command; remarks are for people. A failed step does not prevent the others.
func Run(ctx context.Context, o Options, out, remarks io.Writer) error {
	c := &cleanup{Options: o, out: out, remarks: remarks}
	if err := c.identify(); err != nil {
		return err
	}
	here, err := presence.Register(c.owner.Network, "") // prevents the start of a daemon meanwhile
	if errors.As(err, new(*presence.ConflictError)) {
		return fmt.Errorf("refused: %w; stop it first", err)
	}
	if err != nil {
		return err
	}
	defer here.Close()
	if err := c.refuseIfRunning(); err != nil {
		return err
	}
	err = errors.Join(c.kernel(), c.rules(ctx), c.files())
	if err == nil && c.steps == 0 {
		fmt.Fprintf(remarks, "nothing of the network %s is left\n", c.owner.Network)
	}
	return err
}

type cleanup struct {
	Options
	owner        firewall.Owner
	out, remarks io.Writer
	steps        int
}

// identify determines the network.
func (c *cleanup) identify() error {
	env, err := subnetenv.Read(c.SubnetFile)
	if err != nil {
		return err
	}
	claim, err := subnetenv.ReadClaim(c.SubnetFile)
	if err != nil {
		fmt.Fprintf(c.remarks, "cannot read the claim, continuing without it: %v\n", err)
	}
	c.owner.Network = cmp.Or(env.Network, claim.Subnets.V4()) // at least the subnet
	if !c.owner.Network.IsValid() || c.owner.Network.Bits() == 0 {
		return fmt.Errorf("no network is named in %s or in the file beside it, so it is not known what is flanneld's; set -subnet-file to that of the flanneld that ran", c.SubnetFile)
	}
	for _, subnet := range []netip.Prefix{env.Subnet, claim.Subnets.V4()} {
		if v := (firewall.Overlay{Network: c.owner.Network, Subnet: subnet}); subnet.IsValid() && !slices.Contains(c.owner.Overlays, v) {
			c.owner.Overlays = append(c.owner.Overlays, v)
		}
	}
	return nil
}

// step prints a command, and executes it unless DryRun is set.
func (c *cleanup) step(command string, do func() error) error {
	c.steps++
	fmt.Fprintln(c.out, command)
	if c.DryRun {
		return nil
	}
	return do()
}

// kernel removes devices, routes and nexthops.
func (c *cleanup) kernel() error {
	k, err := kernel.New()
	if err != nil {
		return err
	}
	defer k.Close()
	names, err := k.LinkNames()
	if err != nil {
		return err
	}
	scope := dataplane.Scope{
		Networks: []netip.Prefix{c.owner.Network}, NextHops: true,
		Links: slices.DeleteFunc(names, func(name string) bool { return !dataplane.IsDeviceName(name) }),
	}
	have, err := k.Snapshot(scope)
	if err != nil {
		return err
	}
	ops, left := c.removal(have, scope)
	errs := []error{left}
	for _, op := range ops {
		errs = append(errs, c.step(op.String(), func() error { return k.Apply([]dataplane.Op{op})[0] }))
	}
	return errors.Join(errs...)
}

// removal returns the operations that remove everything of ours: whole devices, and on other
// devices the objects with our protocol number.
func (c *cleanup) removal(have dataplane.State, scope dataplane.Scope) (ops []dataplane.Op, left error) {
	var links []dataplane.Op
	gone := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(have.Links)) {
		ours, foreign := have.DeviceOf(c.owner.Network, name)
		switch {
		case ours && foreign.IsValid():
			left = errors.Join(left, fmt.Errorf("%s is left, for it has %s too, which is not in %s: ip link del %[1]s", name, foreign, c.owner.Network))
		case ours:
			gone[name] = true
			links = append(links, dataplane.KindLink.Del(name, have.Links[name]))
		}
	}
	scope.Links = nil
	for op := range dataplane.Diff(dataplane.NewState(), have, scope, true).Ops() {
		if !gone[op.Device()] { // others are removed with the device
			ops = append(ops, op)
		}
	}
	return append(ops, links...), left
}

// rules removes packet filter rules from all places.
func (c *cleanup) rules(ctx context.Context) error {
	ipt, nft := iptables.NewTools(0), new(nftables.Keeper)
	defer nft.Close()
	var errs []error
	for _, k := range []firewall.Keeper{ipt.Legacy(), ipt.Compat(), nft} {
		errs = append(errs, c.ruleset(ctx, k))
	}
	tables, err := nft.OpenLock()
	if firewall.Absent(err) {
		return errors.Join(errs...)
	}
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	defer tables.Close()
	locked, err := tables.Locked(c.owner.Network)
	if errs = append(errs, err); locked {
		errs = append(errs, c.step("nft delete table "+nftables.LockTable(c.owner.Network), func() error {
			_, err := tables.Unlock(c.owner.Network)
			return err
		}))
	}
	return errors.Join(append(errs, c.firewalld(ctx, tables))...)
}

// ruleset removes the rules of one keeper, all at once.
func (c *cleanup) ruleset(ctx context.Context, k firewall.Keeper) error {
	none := firewall.Ruleset{Family: firewall.FamilyOf(c.owner.Network.Addr()), Owner: c.owner}
	changes, err := k.Plan(ctx, none)
	if firewall.Absent(err) {
		return nil
	}
	if err != nil || len(changes) == 0 {
		return err
	}
	var commands []string
	for _, c := range changes {
		commands = append(commands, c.Command)
	}
	return c.step(strings.Join(commands, "\n"), func() (err error) {
		for range maxLockAttempts {
			if _, err = k.Sync(ctx, none); firewall.Locked(err) == nil {
				break
			}
		}
		return err
	})
}

// firewalld removes the network from firewalld's trusted zone. It contacts firewalld only if its
// table is in this network namespace: the system bus may be that of another one.
func (c *cleanup) firewalld(ctx context.Context, nft *nftables.Tables) error {
	owned, err := nft.OwnedTables()
	if err != nil || !slices.Contains(owned, firewalld.Table) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, firewalldTimeout)
	defer cancel()
	client, err := firewalld.Dial(ctx)
	if errors.Is(err, firewalld.ErrNoBus) {
		fmt.Fprintf(c.remarks, "cannot connect to firewalld (%v); if it trusts the network: %s\n", err, firewalld.UntrustCommand(c.owner.Network))
		return nil
	}
	if err != nil {
		return err
	}
	defer client.Close()
	trusted, err := client.Trusted(ctx, c.owner.Network)
	if firewalld.NotRunning(err) {
		return nil
	}
	if err != nil || !trusted {
		return err
	}
	return c.step(firewalld.UntrustCommand(c.owner.Network), func() error { return client.Untrust(ctx, c.owner.Network) })
}

// files removes the files, if wanted.
func (c *cleanup) files() error {
	if !c.Files {
		return nil
	}
	var errs []error
	for _, path := range append(subnetenv.Files(c.SubnetFile), subnetenv.SocketPath(c.SubnetFile)) {
		if _, err := os.Lstat(path); err == nil {
			errs = append(errs, c.step("rm "+path, func() error { return os.Remove(path) }))
		}
	}
	return errors.Join(errs...)
}
