package driver

import (
	"context"
	"slices"
	"sync"

	"flanneld/pkg/dataplane"
)

// Part is a driver for some kinds of objects.
type Part struct {
	Driver
	Kinds []dataplane.Kind
	// CreatesLinks is the type of links that only this driver can create; "" if there is none. It
	// creates or changes such a link before the base driver sets common attributes. The base driver
	// deletes it.
	CreatesLinks string
}

// Mux is a Driver that combines a base driver with parts for some kinds.
type Mux struct {
	base   Driver
	parts  []Part // base is first
	events *Mailbox
}

// NewMux returns a Mux. Its events end with ctx.
func NewMux(ctx context.Context, base Driver, parts ...Part) *Mux {
	m := &Mux{base: base, parts: append([]Part{{Driver: base}}, parts...), events: NewMailbox()}
	var sources sync.WaitGroup
	for _, p := range m.parts {
		sources.Go(func() { m.forward(ctx, p.Events()) })
	}
	go func() {
		sources.Wait()
		m.events.Close()
	}()
	return m
}

func (m *Mux) forward(ctx context.Context, events <-chan Event) {
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-events:
			if !ok {
				return
			}
			m.events.Report(e)
		}
	}
}

// Events implements Driver. The channel is closed when the events end.
func (m *Mux) Events() <-chan Event { return m.events.Events() }

// Snapshot implements Driver. It calls the base driver first, then the parts in order.
func (m *Mux) Snapshot(scope dataplane.Scope, s *dataplane.State) error {
	for _, p := range m.parts {
		if err := p.Snapshot(scope, s); err != nil {
			return err
		}
	}
	return nil
}

// Apply implements Driver. It passes operations to the drivers in batches as large as the order
// allows. Operations on a link that could not be created are not executed.
func (m *Mux) Apply(ops []dataplane.Op) []error {
	errs := make([]error, len(ops))
	unmade := map[string]error{} // errors of links that could not be created
	for i := 0; i < len(ops); {
		if maker := m.creator(ops[i]); maker != nil {
			if errs[i] = m.createLink(maker, ops[i]); errs[i] != nil {
				unmade[ops[i].Device()] = errs[i]
			}
			i++
			continue
		}
		if err := unmade[ops[i].Device()]; err != nil {
			errs[i] = err
			i++
			continue
		}
		d, end := m.driver(ops[i]), i+1
		for end < len(ops) && m.creator(ops[end]) == nil && m.driver(ops[end]) == d && unmade[ops[end].Device()] == nil {
			end++
		}
		copy(errs[i:end], d.Apply(ops[i:end]))
		i = end
	}
	return errs
}

// driver returns the driver of an operation's kind.
func (m *Mux) driver(op dataplane.Op) Driver {
	for _, p := range m.parts {
		if slices.Contains(p.Kinds, op.Kind) {
			return p.Driver
		}
	}
	return m.base
}

// creator returns the driver that creates the link of an operation, or nil if the base driver does.
func (m *Mux) creator(op dataplane.Op) Driver {
	if op.Kind != dataplane.KindLink || op.Verb == dataplane.Del {
		return nil
	}
	_, link := dataplane.KindLink.Of(op)
	for _, p := range m.parts {
		if p.CreatesLinks != "" && p.CreatesLinks == link.Kind {
			return p.Driver
		}
	}
	return nil
}

// createLink creates or changes a link with its driver, and sets the remaining attributes with the
// base driver.
func (m *Mux) createLink(maker Driver, op dataplane.Op) error {
	ops := []dataplane.Op{op}
	if err := maker.Apply(ops)[0]; err != nil {
		return err
	}
	ops[0].Verb = dataplane.Set // the link exists now
	return m.base.Apply(ops)[0]
}
