package kernel

import (
	"context"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/driver"
)

// Driver combines a Kernel with a Watch of the scope that was last read. It implements
// driver.Driver.
type Driver struct {
	*Kernel
	*Watch
}

var _ driver.Driver = (*Driver)(nil)

// Drive starts a Watch of a scope, which each Snapshot replaces. The events end with ctx.
func (k *Kernel) Drive(ctx context.Context, first dataplane.Scope) (*Driver, error) {
	w, err := k.Watch(ctx, first)
	if err != nil {
		return nil, err
	}
	return &Driver{k, w}, nil
}

// Snapshot implements driver.Driver. Events are about its scope from before the reading on.
func (d *Driver) Snapshot(scope dataplane.Scope, s *dataplane.State) error {
	d.Focus(scope)
	return d.read(scope, s)
}
