package store

import (
	"context"
	"crypto/tls"
	"errors"
	"path"
	"strings"
	"time"

	"flanneld/pkg/condition"
	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/etcd"
	"flanneld/pkg/shell"
)

// Registry is an API of etcd whose errors about user and permissions are conditions.
type Registry struct {
	Client
	API        API
	options    etcd.Options
	conditions *condition.List
	stats      *stats
}

// permission returns the permission that an operation needs, which may be granted without the
// others, and what is wrong without it.
func (o Op) permission() (id, denied string) {
	switch o {
	case OpConfig:
		return "config", "etcd does not permit this host to read the network config"
	case OpWriteConfig:
		return "write-config", "etcd does not permit this user to write the network config"
	case OpList, OpGet, OpWatch:
		return "read", "etcd does not permit this host to read leases"
	}
	return "write", "etcd does not permit this host to write its lease"
}

func (a Registry) id(what string) string { return "etcd-access/" + string(a.API) + "/" + what }

// answered reports by the error of an operation whether it was done, possibly without an effect.
func answered(err error) bool {
	return err == nil || errors.Is(err, registry.ErrConflict) || errors.Is(err, registry.ErrNoConfig) ||
		errors.Is(err, registry.ErrLongConfig) || errors.Is(err, registry.ErrHistoryLost) || errors.Is(err, registry.ErrConfigChanged)
}

// note counts a call, begins or ends the conditions that follow from its error, and returns the
// error. A call without an answer changes no condition.
func (a Registry) note(ctx context.Context, op Op, err error) error {
	a.stats.count(ctx, op, err)
	permission, _ := op.permission()
	switch {
	case errors.Is(err, registry.ErrLogin):
		a.conditions.Set(condition.Condition{
			ID: a.id("login"), Severity: condition.Severe, Text: "etcd refuses the user or the password",
			Fields: []any{"store", a.API, "user", a.user(), "reason", "set -etcd-username and -etcd-password to those of a user that etcd knows"},
		})
	case errors.Is(err, registry.ErrDenied):
		a.conditions.End(a.id("login"))
		a.deny(ctx, op)
	case answered(err):
		a.conditions.End(a.id("login"))
		a.conditions.End(a.id(permission))
	}
	return err
}

// forget ends all conditions of an API that is no longer used.
func (a Registry) forget() { a.conditions.Replace(a.id(""), nil) }

// deny begins the condition that the user lacks the permission for an operation.
func (a Registry) deny(ctx context.Context, op Op) {
	permission, denied := op.permission()
	prefix := strings.TrimSuffix(a.ConfigKey(), path.Base(a.ConfigKey()))
	c := condition.Condition{
		ID: a.id(permission), Severity: condition.Severe, Text: denied,
		Fields: []any{"store", a.API, "key", prefix, "user", a.user(), "permission", "readwrite"},
	}
	switch {
	case a.API == APIv2 && a.user() == "":
		c.Fields = append(c.Fields, "reason", "nobody is logged in: set -etcd-username and -etcd-password")
	case a.API == APIv2 && op == OpConfig:
		c.Fields = append(c.Fields, "reason", "the password is wrong, or the user lacks the permission")
	}
	for _, known := range a.conditions.Current() {
		if known.ID == c.ID {
			c.Command = known.Command // avoids another request to etcd
		}
	}
	if c.Command == "" {
		c.Command = a.grant(ctx, prefix)
	}
	a.conditions.Set(c)
}

// grant returns the commands that permit this host's user to keep its network below prefix: with a
// role of the user if that is known, else with a new one.
func (a Registry) grant(ctx context.Context, prefix string) string {
	o, user := a.options, a.user()
	if user == "" {
		return ""
	}
	o.Username = user // changing roles requires a login too
	if a.API == APIv2 {
		return strings.Join([]string{
			etcdctl(o, APIv2, "role", "add", "flannel"),
			etcdctl(o, APIv2, "role", "grant", "--readwrite", "--path="+prefix+"*", "flannel"),
			etcdctl(o, APIv2, "user", "grant", "--roles=flannel", user),
		}, "; ")
	}
	permit := func(role string) string {
		return etcdctl(o, APIv3, "role", "grant-permission", "--prefix", role, "readwrite", prefix)
	}
	if r, ok := a.Client.(interface {
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

// user returns the name by which etcd knows this host: that of the flag, else, in v3, the common
// name of the client's certificate.
func (a Registry) user() string {
	if e, err := a.options.ParseEndpoints(); err == nil && e.Username != "" {
		return e.Username
	}
	if a.API == APIv3 && a.options.CertFile != "" {
		if pair, err := tls.LoadX509KeyPair(a.options.CertFile, a.options.KeyFile); err == nil && pair.Leaf != nil {
			return pair.Leaf.Subject.CommonName
		}
	}
	return ""
}

// MoveCommand returns the commands that make this host lease another subnet: without its key and
// the files with its lease, it chooses a new one.
func (a Registry) MoveCommand(subnets lease.Subnets, files []string) string {
	remove := "rm -f"
	for _, f := range files {
		remove += " " + shell.Word(f)
	}
	return strings.Join([]string{
		"systemctl stop flanneld", a.DeleteCommand(subnets), remove, "systemctl start flanneld",
	}, "; ")
}

// Config implements registry.Registry.
func (a Registry) Config(ctx context.Context) ([]byte, error) {
	raw, err := a.Client.Config(ctx)
	return raw, a.note(ctx, OpConfig, err)
}

// ReadConfig implements registry.Registry.
func (a Registry) ReadConfig(ctx context.Context) ([]byte, uint64, error) {
	raw, revision, err := a.Client.ReadConfig(ctx)
	return raw, revision, a.note(ctx, OpConfig, err)
}

// WriteConfig implements registry.Registry.
func (a Registry) WriteConfig(ctx context.Context, raw []byte, revision uint64) error {
	return a.note(ctx, OpWriteConfig, a.Client.WriteConfig(ctx, raw, revision))
}

// List implements registry.Registry.
func (a Registry) List(ctx context.Context) (registry.Listing, error) {
	l, err := a.Client.List(ctx)
	return l, a.note(ctx, OpList, err)
}

// Get implements registry.Registry.
func (a Registry) Get(ctx context.Context, subnets lease.Subnets) (registry.Event, error) {
	ev, err := a.Client.Get(ctx, subnets)
	return ev, a.note(ctx, OpGet, err)
}

// Watch implements registry.Registry.
func (a Registry) Watch(ctx context.Context, index uint64) ([]registry.Event, uint64, error) {
	events, next, err := a.Client.Watch(ctx, index)
	return events, next, a.note(ctx, OpWatch, err)
}

// Create implements registry.Registry.
func (a Registry) Create(ctx context.Context, subnets lease.Subnets, attrs lease.Attrs, ttl time.Duration) (lease.Lease, error) {
	l, err := a.Client.Create(ctx, subnets, attrs, ttl)
	return l, a.note(ctx, OpCreate, err)
}

// Update implements registry.Registry.
func (a Registry) Update(ctx context.Context, prev lease.Lease, attrs lease.Attrs, ttl time.Duration) (lease.Lease, error) {
	l, err := a.Client.Update(ctx, prev, attrs, ttl)
	return l, a.note(ctx, OpUpdate, err)
}

// Release implements registry.Registry.
func (a Registry) Release(ctx context.Context, prev lease.Lease) error {
	return a.note(ctx, OpRelease, a.Client.Release(ctx, prev))
}
