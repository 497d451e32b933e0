package firewall

import "net/netip"

// Packet describes a packet whose path through the rules is evaluated. A field that is not set is
// unknown, and so is the result of a condition on it.
type Packet struct {
	In, Out          string // devices
	Src, Dst         netip.Addr
	Protocol         uint8
	SrcPort, DstPort uint16
	ToHost           bool // Dst is an address of this host
}

// Met is the result of evaluating a condition.
type Met uint8

const (
	No Met = iota
	Maybe
	Yes
)

// And returns the result for two conditions that must both be met.
func (m Met) And(other Met) Met { return min(m, other) }

// Action is what a rule does with packets that meet its conditions.
type Action uint8

const (
	Pass       Action = iota // accepted by this base chain
	Drop                     // with or without an error to the sender
	Back                     // return to the calling chain, or apply the policy
	Jump                     // to Step.Chain, and return here afterwards
	GoTo                     // to Step.Chain, and return to the caller of this chain
	PassOrDrop               // one of the two, which is not known
)

// Step is the evaluation of a rule for one packet.
type Step struct {
	Met   Met
	Do    Action
	Chain string
}

// Fate is the set of possible outcomes for a packet.
type Fate uint8

const (
	Passes Fate = 1 << iota
	Drops
	returns
)

// Walk evaluates the chains of one table for one packet.
type Walk struct {
	// Steps reads a chain. It returns no steps for a chain that does not exist.
	Steps func(chain string) ([]Step, error)

	fates map[string]Fate // of the chains that were evaluated
	depth int
}

// maxDepth limits jumps. The kernel allows fewer in nftables, and no loops anywhere.
const maxDepth = 256

// Base returns the possible outcomes for the packet in a base chain with a policy of Passes or
// Drops.
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

// step returns the outcomes of a rule whose conditions are met, and whether the packet may continue
// with the next rule.
func (w *Walk) step(s Step) (ends Fate, next bool, err error) {
	if s.Do != Jump && s.Do != GoTo {
		return [...]Fate{Pass: Passes, Drop: Drops, PassOrDrop: Passes | Drops, Back: returns}[s.Do], false, nil
	}
	f, err := w.chain(s.Chain)
	if s.Do == GoTo || err != nil {
		return f, false, err
	}
	return f &^ returns, f&returns != 0, nil
}
