package kernel

import (
	"context"

	"flanneld/pkg/dataplane"
	"flanneld/pkg/driver"
)

// Driver combines a Kernel with a Watch of the scope that was last read. It implements
// driver.Driver.
type Driver struct {
	kernel *Kernel
	watch  *Watch
}

var _ driver.Driver = (*Driver)(nil)

// Drive starts a Watch with the given interest, which each Snapshot replaces. The events end with
// ctx.
func (k *Kernel) Drive(ctx context.Context, first Interest) (*Driver, error) {
	w, err := k.Watch(ctx, first)
	if err != nil {
		return nil, err
	}
	return &Driver{k, w}, nil
}

// Snapshot implements driver.Driver. Events are about its scope from before the reading on.
func (d *Driver) Snapshot(scope dataplane.Scope, s *dataplane.State) error {
	d.watch.Focus(Interest{Scope: scope, Uplinks: scope.Underlay})
	return d.kernel.read(scope, s)
}

// Apply implements driver.Driver.
func (d *Driver) Apply(ops []dataplane.Op) []error { return d.kernel.Apply(ops) }

// Events implements driver.Driver.
func (d *Driver) Events() <-chan driver.Event { return d.watch.Events() }
