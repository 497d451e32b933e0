package kernel

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"flanneld/pkg/dataplane"
)

// Snapshot reads the objects in scope: its links with their addresses, permanent neighbours and
// permanent FDB entries; unicast routes of the main table to destinations inside its network, by
// any link, and our blackholes there; nexthop objects of any program with an ID in its range; its
// sysctls. Objects that do not exist are absent. A multipath route is included without a link, and
// a nexthop that is not a gateway on a link without a link and without our protocol number, so that
// they are not replaced by accident.
//
// A Watch of the same Kernel does not report FDB entries again that a Snapshot has returned; so
// both are for one reader, who must repeat a failed Snapshot.
func (k *Kernel) Snapshot(scope dataplane.Scope) (dataplane.State, error) {
	s := dataplane.NewState()
	err := k.read(scope, &s)
	return s, err
}

// read adds the objects of a Snapshot to a State.
func (k *Kernel) read(scope dataplane.Scope, s *dataplane.State) error {
	g := &reader{k: k, scope: scope, s: s, links: map[int]string{}, names: map[int]string{}}
	for _, kind := range dataplane.Kinds() { // a kind may need objects of the kinds before it
		if h := handlers[kind]; h != nil {
			if err := h.read(g); err != nil {
				return err
			}
		}
	}
	return nil
}

// reader reads a Snapshot.
type reader struct {
	k     *Kernel
	scope dataplane.Scope
	s     *dataplane.State
	links map[int]string // links of the scope, by index
	names map[int]string // of these and other links, by index; "" if a link is gone

	otherHops   map[uint32]dataplane.NextHop // nexthop objects outside the scope's range
	foreignHops bool                         // a route is through one of them
}

// onLinks reads the objects of each link of the scope. A link that is gone meanwhile has none.
func (g *reader) onLinks(what string, read func(name string, index int) error) error {
	for index, name := range g.links {
		if err := read(name, index); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("list %s of %s: %w", what, name, err)
		}
	}
	return nil
}
