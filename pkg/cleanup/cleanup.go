// Package cleanup removes from this host what a daemon has made for a network and left: devices,
// routes, nexthops, packet filter rules and, if wanted, files.
//
// It needs no etcd: the network is the one that the subnet file, or the claim beside it, names.
// Invariant: nothing is removed that is not provably that network's, and nothing while a daemon
// of the network runs.
package cleanup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/firewall"
	"flanneld/pkg/iptables"
	"flanneld/pkg/kernel"
	"flanneld/pkg/nftables"
	"flanneld/pkg/presence"
	"flanneld/pkg/subnetenv"
)

// maxLockAttempts is how often the removal of rules waits for the lock of iptables, at least a second
// each.
const maxLockAttempts = 10

// Options say what Run is to remove.
type Options struct {
	SubnetFile string // names the network, with the claim beside it
	Files      bool   // remove these files too
	DryRun     bool   // only say what there is to do
}

// Run removes devices with all that is on them, routes, nexthops, packet filter rules of either
// iptables and of nftables, and what firewalld was asked for. Each step is written to out as a
// command; remarks are for people. What cannot be removed does not keep it from the rest.
func Run(ctx context.Context, o Options, out, remarks io.Writer) error {
	c := &cleanup{Options: o, out: out, remarks: remarks}
	if err := c.identify(); err != nil {
		return err
	}
	here, err := presence.Register(c.owner.Network, "") // so that no daemon starts meanwhile
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

// identify finds out which network it is about.
func (c *cleanup) identify() error {
	env, err := subnetenv.Read(c.SubnetFile)
	if err != nil {
		return err
	}
	claim, err := subnetenv.ReadClaim(c.SubnetFile)
	if err != nil {
		fmt.Fprintf(c.remarks, "going on without the claim: %v\n", err)
	}
	c.owner.Network = env.Network
	if !c.owner.Network.IsValid() {
		c.owner.Network = claim.Subnets.V4 // at least that
	}
	if !c.owner.Network.IsValid() || c.owner.Network.Bits() == 0 {
		return fmt.Errorf("%s: no network is named in it or beside it, so that it is not known what is flanneld's", c.SubnetFile)
	}
	for _, subnet := range []netip.Prefix{env.Subnet, claim.Subnets.V4} {
		if v := (firewall.Overlay{Network: c.owner.Network, Subnet: subnet}); subnet.IsValid() && !slices.Contains(c.owner.Overlays, v) {
			c.owner.Overlays = append(c.owner.Overlays, v)
		}
	}
	return nil
}

// step says a command, and does it.
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
	scope := dataplane.Scope{Network: c.owner.Network, NextHops: true}
	for _, name := range names {
		if dataplane.IsDeviceName(name) {
			scope.Links = append(scope.Links, name)
		}
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

// removal is what removes all that is ours of what the kernel holds: whole devices, and on those of
// others what bears our stamp.
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
		if !gone[op.Device()] { // these go with the device
			ops = append(ops, op)
		}
	}
	return append(ops, links...), left
}

// rules removes packet filter rules, wherever they may be kept.
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

// ruleset removes the rules that one keeper has. They all go at once.
func (c *cleanup) ruleset(ctx context.Context, k firewall.Keeper) error {
	none := firewall.Ruleset{Family: firewall.FamilyOf(c.owner.Network), Owner: c.owner}
	commands, err := k.Removal(ctx, none)
	if firewall.Absent(err) {
		return nil
	}
	if err != nil || len(commands) == 0 {
		return err
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

// files removes the files, if that is wanted.
func (c *cleanup) files() error {
	if !c.Files {
		return nil
	}
	var errs []error
	for _, path := range subnetenv.Files(c.SubnetFile) {
		if _, err := os.Lstat(path); err == nil {
			errs = append(errs, c.step("rm "+path, func() error { return os.Remove(path) }))
		}
	}
	return errors.Join(errs...)
}
