// Package operator does what an operator does to a network in etcd: it reads, checks and writes the
// network config, and lists, reserves and releases leases. It uses the API of etcd that the daemon
// uses.
//
// It does not ask whether a change is wanted; the command does. Invariant: every write is a
// compare-and-swap on what was shown to the operator, and leaves only what any host of the network
// can read.
package operator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	"flanneld/pkg/backend"
	"flanneld/pkg/condition"
	"flanneld/pkg/configdiff"
	"flanneld/pkg/lease"
	"flanneld/pkg/netconf"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/etcd"
	"flanneld/pkg/registry/etcdv3"
	"flanneld/pkg/registry/store"
	"flanneld/pkg/subnetenv"
)

// Limit limits the time of opening a network, and of each operation but a listing.
const Limit = 30 * time.Second

// Options say where a network is.
type Options struct {
	Etcd       etcd.Options
	API        store.API
	Domain     string       // whose SRV records name the endpoints of etcd; empty if they are given
	SubnetFile string       // of the daemon of this host, if there is one
	Log        *slog.Logger // warnings about etcd, with what to do
}

// Network is a network in etcd.
type Network struct {
	options  Options
	identity store.Identity // of this host
	store    *store.Store
	reg      store.Registry

	raw      []byte // the config as it was read; nil if there is none, or if it is too long
	revision uint64 // 0 if there is none
	unread   error  // why there is no config: ErrNoConfig or ErrLongConfig
}

// Open finds the API that has the network and reads its config. It is no error if there is none.
func Open(ctx context.Context, o Options) (*Network, error) {
	etcdv3.DiscardLog()
	ctx, cancel := context.WithTimeout(ctx, Limit)
	defer cancel()
	conditions := condition.NewList(o.Log)
	if o.Domain != "" {
		var err error
		if o.Etcd.Endpoints, err = store.Resolve(ctx, o.Domain, o.Log, conditions); err != nil {
			return nil, fmt.Errorf("find etcd by the SRV records of %s: %w", o.Domain, err)
		}
	}
	host := identity(o.SubnetFile)
	s, err := store.Open(o.Etcd, o.API, host, o.Log, conditions)
	if err != nil {
		return nil, err
	}
	n := &Network{options: o, identity: host, store: s}
	if err := n.choose(ctx); err != nil {
		s.Close()
		return nil, err
	}
	return n, nil
}

// Close closes the connections.
func (n *Network) Close() { n.store.Close() }

// identity returns how to recognise the lease of this host, as far as that is known.
func identity(subnetFile string) store.Identity {
	claim, _ := subnetenv.ReadClaim(subnetFile) // without it, the host is recognised by its addresses
	addrs, _ := net.InterfaceAddrs()
	return store.Identity{Last: store.API(claim.Store), Owns: func(l lease.Lease) bool {
		return claim.Matches(l) || lease.IsHost(l.PublicIP) && slices.ContainsFunc(addrs, func(a net.Addr) bool {
			p, err := netip.ParsePrefix(a.String())
			return err == nil && p.Addr() == l.PublicIP
		})
	}}
}

// choose chooses the API and reads the config.
func (n *Network) choose(ctx context.Context) (err error) {
	_, found := n.store.Find(ctx)
	switch err = found; {
	case errors.Is(err, registry.ErrNoConfig):
		n.reg, err = n.store.Vacant()
	case err == nil || known(err):
		n.reg, err = n.store.Registry(), nil
	}
	if err != nil {
		return err
	}
	n.raw, n.revision, err = n.reg.ReadConfig(ctx)
	if known(err) {
		n.unread, err = err, nil
	}
	if errors.Is(n.unread, registry.ErrNoConfig) && errors.Is(found, registry.ErrNoConfig) {
		n.unread = found // it also says where else there is one
	}
	return err
}

// known reports whether an error says that there is no config that can be read.
func known(err error) bool {
	return errors.Is(err, registry.ErrNoConfig) || errors.Is(err, registry.ErrLongConfig)
}

// Where returns the key of the network config and the API, for people.
func (n *Network) Where() string {
	return fmt.Sprintf("%s in the %s API of etcd", n.reg.ConfigKey(), n.reg.API)
}

// Config returns the stored network config. If there is none that can be read, the error is a
// RefusedError.
func (n *Network) Config() ([]byte, error) {
	if n.unread != nil {
		return nil, RefusedError{n.unread}
	}
	return n.raw, nil
}

// maxInput limits the length of a config that is read from a file.
const maxInput = 16 * netconf.MaxConfig

// ReadConfig reads a config. A byte order mark, which the original cannot read, and white space
// around it are left out.
func ReadConfig(from io.Reader) ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(from, maxInput))
	return bytes.TrimSpace(bytes.TrimPrefix(raw, []byte("\ufeff"))), err
}

// Validate returns everything that is wrong with a config, as the daemon sees it, and warnings about
// keys that it understands in another way than they are probably meant.
func Validate(config []byte) (problems []error, warnings []string) { return backend.Problems(config) }

// Compare compares a config with the stored one, and says what it means for the hosts.
func (n *Network) Compare(ctx context.Context, after []byte) (configdiff.Report, error) {
	in := configdiff.Input{Before: n.raw, After: after, Needed: map[string]bool{}}
	if n.raw == nil && n.unread != nil && n.revision != 0 {
		in.Before = []byte(n.unread.Error())
	}
	listing, err := n.reg.List(ctx)
	if err != nil {
		return configdiff.Compare(in), err
	}
	in.Leases = listing.Leases
	if endpoints, err := n.options.Etcd.ParseEndpoints(); err == nil {
		for _, e := range endpoints.All {
			if e.Socket() == "" {
				in.Needed[e.Hostname()] = true
			}
		}
	}
	return configdiff.Compare(in), nil
}

// Write replaces the stored config, if that is still the one that Config returns.
func (n *Network) Write(ctx context.Context, after []byte) error {
	ctx, cancel := context.WithTimeout(ctx, Limit)
	defer cancel()
	switch err := n.reg.WriteConfig(ctx, after, n.revision); {
	case errors.Is(err, registry.ErrConfigChanged):
		return Refuse("not written: %w since this one was compared; repeat the command to see the difference from that", registry.ErrConfigChanged)
	case err == nil, errors.Is(err, registry.ErrDenied):
		return err
	default:
		return fmt.Errorf("it is not known whether the config was written: %w", err)
	}
}

// valid returns the stored config, or why it cannot be used.
func (n *Network) valid() (backend.Network, error) {
	raw, err := n.Config()
	if err != nil {
		return backend.Network{}, err
	}
	config, err := backend.ParseNetwork(raw)
	if err != nil {
		err = RefusedError{err}
	}
	return config, err
}
