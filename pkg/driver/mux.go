package driver

import (
	"context"
	"sync"

	"flanneld/pkg/dataplane"
)

// Part is a driver and what is its own.
type Part struct {
	Driver
	Kinds []dataplane.Kind
	// Makes is the type of links that exist only through this driver; "" if there is none. It is
	// asked to make such a link, or to change it, before the base driver sets what all links
	// have. The base deletes it.
	CreatesLinks string
}

// Mux is a Driver made of others: a base, and parts that have some kinds of their own.
type Mux struct {
	base   Driver
	parts  []Part
	byKind map[dataplane.Kind]Driver
	byLink map[string]Driver
	events *Mailbox
}

// NewMux makes a Driver. Its events end with ctx.
func NewMux(ctx context.Context, base Driver, parts ...Part) *Mux {
	m := &Mux{base: base, parts: parts, byKind: map[dataplane.Kind]Driver{}, byLink: map[string]Driver{}, events: NewMailbox()}
	var sources sync.WaitGroup
	sources.Go(func() { m.forward(ctx, base.Events()) })
	for _, p := range parts {
		for _, k := range p.Kinds {
			m.byKind[k] = p.Driver
		}
		if p.CreatesLinks != "" {
			m.byLink[p.CreatesLinks] = p.Driver
		}
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

// Events implements Driver. The channel is closed when the events have ended.
func (m *Mux) Events() <-chan Event { return m.events.Events() }

// Snapshot implements Driver: the base first, then the parts in turn.
func (m *Mux) Snapshot(scope dataplane.Scope, s *dataplane.State) error {
	if err := m.base.Snapshot(scope, s); err != nil {
		return err
	}
	for _, p := range m.parts {
		if err := p.Snapshot(scope, s); err != nil {
			return err
		}
	}
	return nil
}

// Apply implements Driver. Operations go to their drivers in batches as large as the order
// allows. On a link that could not be made, nothing is done.
func (m *Mux) Apply(ops []dataplane.Op) []error {
	errs := make([]error, len(ops))
	unmade := map[string]error{} // links, and why
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
	if d, ok := m.byKind[op.Kind]; ok {
		return d
	}
	return m.base
}

// creator returns the driver without which there is no link such as an operation wants; nil: the base
// makes it.
func (m *Mux) creator(op dataplane.Op) Driver {
	if op.Kind != dataplane.KindLink || op.Verb == dataplane.Del {
		return nil
	}
	_, link := dataplane.KindLink.Of(op)
	return m.byLink[link.Kind]
}

// createLink has a link made or changed by its maker, and by the base what is left of it.
func (m *Mux) createLink(maker Driver, op dataplane.Op) error {
	ops := []dataplane.Op{op}
	if err := maker.Apply(ops)[0]; err != nil {
		return err
	}
	ops[0].Verb = dataplane.Set // it is there now
	return m.base.Apply(ops)[0]
}
