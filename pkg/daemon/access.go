package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"net/netip"
	"path"
	"strings"
	"time"

	"flanneld/pkg/condition"
	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/etcd"
)

// access is an API of etcd's whose refusals are conditions: that it does not know the user, or
// does not let the user do something.
type access struct {
	client
	api        API
	options    etcd.Options
	conditions *condition.List
}

// deed is what an API may be asked to do. Each may be permitted without the others.
type deed string

const (
	readingConfig deed = "config"
	reading       deed = "read"
	writing       deed = "write"
)

// denied says that it is not permitted.
func (d deed) denied() string {
	switch d {
	case readingConfig:
		return "etcd does not permit this host to read the network config"
	case reading:
		return "etcd does not permit this host to read leases"
	}
	return "etcd does not permit this host to write its lease"
}

func (a access) id(what string) string { return "etcd-access/" + string(a.api) + "/" + what }

// note begins or ends the conditions that a call of a kind tells of. One without an answer
// tells of none.
func (a access) note(ctx context.Context, what deed, err error) {
	answered := err == nil || errors.Is(err, registry.ErrConflict) || errors.Is(err, registry.ErrNoConfig) ||
		errors.Is(err, registry.ErrLongConfig) || errors.Is(err, registry.ErrHistoryLost)
	switch {
	case errors.Is(err, registry.ErrLogin):
		a.conditions.Set(condition.Condition{
			ID: a.id("login"), Severe: true, Text: "etcd refuses the user or the password",
			Fields: []any{"store", a.api, "user", a.user(), "reason", "set -etcd-username and -etcd-password to those of a user that etcd knows"},
		})
	case errors.Is(err, registry.ErrDenied):
		a.conditions.End(a.id("login"))
		a.deny(ctx, what)
	case answered:
		a.conditions.End(a.id("login"))
		a.conditions.End(a.id(string(what)))
	}
}

// forget ends all conditions, of an API that is not asked any more.
func (a access) forget() { a.conditions.Replace(a.id(""), nil) }

// deny begins the condition that the user lacks a permission.
func (a access) deny(ctx context.Context, what deed) {
	prefix := strings.TrimSuffix(a.ConfigKey(), path.Base(a.ConfigKey()))
	c := condition.Condition{
		ID: a.id(string(what)), Severe: true, Text: what.denied(),
		Fields: []any{"store", a.api, "key", prefix, "user", a.user(), "permission", "readwrite"},
	}
	switch {
	case a.api == APIv2 && a.user() == "":
		c.Fields = append(c.Fields, "reason", "nobody is logged in: set -etcd-username and -etcd-password")
	case a.api == APIv2 && what == readingConfig:
		c.Fields = append(c.Fields, "reason", "the password is wrong, or the user lacks the permission")
	}
	for _, known := range a.conditions.Current() {
		if known.ID == c.ID {
			c.Command = known.Command // which took a question to etcd
		}
	}
	if c.Command == "" {
		c.Command = a.grant(ctx, prefix)
	}
	a.conditions.Set(c)
}

// grant returns the commands that permit this host's user to keep its network below prefix:
// by a role that the user has, if that can be told, else by one of its own.
func (a access) grant(ctx context.Context, prefix string) string {
	o, user := a.options, a.user()
	if user == "" {
		return ""
	}
	o.Username = user // who changes roles is to log in, too
	if a.api == APIv2 {
		return strings.Join([]string{
			etcdctl(o, APIv2, "role", "add", "flannel"),
			etcdctl(o, APIv2, "role", "grant", "--readwrite", "--path="+prefix+"*", "flannel"),
			etcdctl(o, APIv2, "user", "grant", "--roles=flannel", user),
		}, "; ")
	}
	permit := func(role string) string {
		return etcdctl(o, APIv3, "role", "grant-permission", "--prefix", role, "readwrite", prefix)
	}
	if r, ok := a.client.(interface {
		Roles(context.Context, string) ([]string, error)
	}); ok {
		ctx, cancel := context.WithTimeout(ctx, storeRetry)
		defer cancel()
		if roles, err := r.Roles(ctx, user); err == nil && len(roles) > 0 {
			return permit(roles[0])
		}
	}
	return strings.Join([]string{etcdctl(o, APIv3, "role", "add", "flannel"), permit("flannel"),
		etcdctl(o, APIv3, "user", "grant-role", user, "flannel")}, "; ")
}

// user is whom etcd knows this host as: the user that was given, else, to v3, the common name of
// the client's certificate.
func (a access) user() string {
	if e, err := a.options.ParseEndpoints(); err == nil && e.Username != "" {
		return e.Username
	}
	if a.api == APIv3 && a.options.CertFile != "" {
		if pair, err := tls.LoadX509KeyPair(a.options.CertFile, a.options.KeyFile); err == nil && pair.Leaf != nil {
			return pair.Leaf.Subject.CommonName
		}
	}
	return ""
}

// Config implements registry.Registry.
func (a access) Config(ctx context.Context) ([]byte, error) {
	raw, err := a.client.Config(ctx)
	a.note(ctx, readingConfig, err)
	return raw, err
}

// List implements registry.Registry.
func (a access) List(ctx context.Context) (registry.Listing, error) {
	l, err := a.client.List(ctx)
	a.note(ctx, reading, err)
	return l, err
}

// Get implements registry.Registry.
func (a access) Get(ctx context.Context, subnet netip.Prefix) (registry.Event, error) {
	ev, err := a.client.Get(ctx, subnet)
	a.note(ctx, reading, err)
	return ev, err
}

// Watch implements registry.Registry.
func (a access) Watch(ctx context.Context, index uint64) ([]registry.Event, uint64, error) {
	events, next, err := a.client.Watch(ctx, index)
	a.note(ctx, reading, err)
	return events, next, err
}

// Create implements registry.Registry.
func (a access) Create(ctx context.Context, subnet netip.Prefix, attrs lease.Attrs, ttl time.Duration) (lease.Lease, error) {
	l, err := a.client.Create(ctx, subnet, attrs, ttl)
	a.note(ctx, writing, err)
	return l, err
}

// Update implements registry.Registry.
func (a access) Update(ctx context.Context, prev lease.Lease, attrs lease.Attrs, ttl time.Duration) (lease.Lease, error) {
	l, err := a.client.Update(ctx, prev, attrs, ttl)
	a.note(ctx, writing, err)
	return l, err
}

// Release implements registry.Registry.
func (a access) Release(ctx context.Context, prev lease.Lease) error {
	err := a.client.Release(ctx, prev)
	a.note(ctx, writing, err)
	return err
}
