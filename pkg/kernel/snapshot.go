package kernel

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
)

// Snapshot reads what lies in scope: the links it names with their addresses,
// permanent neighbours and permanent FDB entries; the unicast routes of the
// main table to anywhere inside its network, by any link, and our blackholes
// there; nexthop objects, whoever made them, with an id in its range; its
// sysctls. What does not exist is absent. A route by several links is there without
// a link, and a nexthop that is not a gateway on a link without one and without
// our stamp, so that nobody replaces them unawares.
//
// What a Snapshot has told of an FDB is not told by a Watch of the same Kernel
// again; so both are for one reader, who repeats a Snapshot that failed.
func (k *Kernel) Snapshot(scope dataplane.Scope) (dataplane.State, error) {
	s := dataplane.NewState()
	err := k.read(scope, &s)
	return s, err
}

// read adds what a Snapshot has to a State that has no such objects.
func (k *Kernel) read(scope dataplane.Scope, s *dataplane.State) error {
	g := &reader{k: k, scope: scope, s: s, links: map[int]string{}, names: names{k: k, known: map[int]string{}}}
	for _, kind := range dataplane.Kinds() { // each needs what those before it have read
		if h := handlers[kind]; h != nil {
			if err := h.read(g); err != nil {
				return err
			}
		}
	}
	return nil
}

// reader is a Snapshot in the making.
type reader struct {
	k     *Kernel
	scope dataplane.Scope
	s     *dataplane.State
	links map[int]string // ours, by index
	names names          // of them and others
	hops  hops
}

// onLinks reads what each link of ours carries. One that went away meanwhile carries nothing.
func (g *reader) onLinks(what string, read func(name string, index int) error) error {
	for index, name := range g.links {
		if err := read(name, index); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("list %s of %s: %w", what, name, err)
		}
	}
	return nil
}
