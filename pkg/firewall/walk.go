package firewall

import "net/netip"

// Packet is one of which is asked what becomes of it. A field that is not set is
// unknown: whether a condition on it is met cannot be said.
type Packet struct {
	In, Out          string // devices
	Src, Dst         netip.Addr
	Protocol         uint8
	SrcPort, DstPort uint16
	ToHost           bool // Dst is an address of this host
}

// Met says whether a packet meets the conditions of a rule.
type Met uint8

const (
	No Met = iota
	Maybe
	Yes
)

// And returns whether both of two conditions are met.
func (m Met) And(other Met) Met { return min(m, other) }

// Action is what a rule does with the packets that meet its conditions.
type Action uint8

const (
	Pass       Action = iota // this base chain lets it pass
	Drop                     // also with an answer
	Back                     // to the chain that has jumped here, or to the policy
	Jump                     // to Step.Chain, and from there back
	GoTo                     // Step.Chain, and from there to where this chain goes back to
	PassOrDrop               // one of the two, by something that is not known here
)

// Step is a rule of any form, as seen by one packet.
type Step struct {
	Met   Met
	Do    Action
	Chain string
}

// Fate is what may become of a packet: a set.
type Fate uint8

const (
	Passes Fate = 1 << iota
	Drops
	returns
)

// Walk follows one packet through the chains of one table.
type Walk struct {
	// Steps reads a chain. A chain that does not exist has none.
	Steps func(chain string) ([]Step, error)

	fates map[string]Fate // of the chains that were walked
	depth int
}

// maxDepth of jumps: the kernel allows fewer in nftables, and no loops anywhere.
const maxDepth = 256

// Base returns what may become of the packet in a base chain with a policy of
// Passes or Drops.
func (w *Walk) Base(chain string, policy Fate) (Fate, error) {
	f, err := w.chain(chain)
	if err != nil {
		return Passes | Drops, err
	}
	if f&returns != 0 {
		f = f&^returns | policy
	}
	return f, nil
}

func (w *Walk) chain(name string) (Fate, error) {
	if f, known := w.fates[name]; known {
		return f, nil
	}
	if w.fates == nil {
		w.fates = map[string]Fate{}
	}
	if w.depth >= maxDepth {
		return Passes | Drops | returns, nil
	}
	w.depth++
	defer func() { w.depth-- }()
	steps, err := w.Steps(name)
	if err != nil {
		return 0, err
	}
	var out Fate
	for _, s := range steps {
		if s.Met == No {
			continue
		}
		ends, next, err := w.step(s)
		if err != nil {
			return 0, err
		}
		if out |= ends; s.Met == Yes && !next {
			w.fates[name] = out
			return out, nil
		}
	}
	w.fates[name] = out | returns
	return out | returns, nil
}

// step returns how the chain may end at a rule whose conditions are met, and
// whether the packet may also go on to the next one.
func (w *Walk) step(s Step) (ends Fate, next bool, err error) {
	switch s.Do {
	case Pass:
		return Passes, false, nil
	case Drop:
		return Drops, false, nil
	case PassOrDrop:
		return Passes | Drops, false, nil
	case Back:
		return returns, false, nil
	}
	f, err := w.chain(s.Chain)
	if s.Do == GoTo || err != nil {
		return f, false, err
	}
	return f &^ returns, f&returns != 0, nil
}
