package firewall

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
	PassOrDrop               // one of the two, or another address, which is not known
	Translate                // accepted by this base chain, with another address or port
	Next                     // continue with the next rule
)

// Effects are changes of a packet that matter to the rules after them.
type Effects uint8

const (
	SetsMark     Effects = 1 << iota // the mark of the packet
	SetsTracking                     // its connection is not tracked, or differently
	SetsHeader                       // addresses or ports, without NAT
)

// Step is the evaluation of a rule for one packet.
type Step struct {
	Met    Met
	Do     Action
	Chain  string
	Sets   Effects
	Number int    // of the rule in its chain, from 1
	Handle uint64 // of the rule in nftables
}

// Fate is the set of possible outcomes for a packet.
type Fate uint8

const (
	Passes Fate = 1 << iota
	Drops
	Translates
	returns
)

// RuleRef identifies a rule. The zero RuleRef means the policy of the base chain.
type RuleRef struct {
	Chain  string
	Number int    // in the chain, from 1
	Handle uint64 // in nftables
}

// Walk evaluates the chains of one table for one packet.
type Walk struct {
	// Steps reads a chain. It returns no steps for a chain that does not exist.
	Steps func(chain string) ([]Step, error)
	NAT   bool // rules may translate the packet

	known   map[string]outcome // of the chains that were evaluated
	within  map[string]bool    // chains that are being evaluated
	effects Effects            // of the rules that the packet may have met
}

// outcome is the result of a chain.
type outcome struct {
	fate Fate
	// last is the last rule that may drop or translate the packet, and unclear the first rule with
	// a condition or an action that is not known.
	last, unclear RuleRef
}

// add adds the outcome of a later rule.
func (o *outcome) add(other outcome) {
	o.fate |= other.fate
	if other.fate&(Drops|Translates) != 0 {
		o.last = other.last
	}
	if o.unclear == (RuleRef{}) {
		o.unclear = other.unclear
	}
}

// maxDepth limits jumps. The kernel allows fewer in nftables, and no loops anywhere.
const maxDepth = 256

// Base returns the possible outcomes for the packet in a base chain with a policy of Passes or
// Drops.
func (w *Walk) Base(chain string, policy Fate) (Fate, error) {
	o, err := w.base(chain, policy)
	return o.fate, err
}

func (w *Walk) base(chain string, policy Fate) (outcome, error) {
	w.known, w.within = map[string]outcome{}, map[string]bool{}
	o, err := w.chain(chain)
	if err != nil {
		return outcome{fate: w.any()}, err
	}
	if o.fate&returns != 0 {
		o.fate &^= returns
		o.add(outcome{fate: policy})
	}
	return o, nil
}

// any returns all outcomes.
func (w *Walk) any() Fate {
	if w.NAT {
		return Passes | Drops | Translates
	}
	return Passes | Drops
}

// chain evaluates each chain once. The outcome of a chain in a loop is unknown.
func (w *Walk) chain(name string) (out outcome, err error) {
	if o, known := w.known[name]; known {
		return o, nil
	}
	if w.within[name] || len(w.within) >= maxDepth {
		return outcome{fate: w.any() | returns}, nil
	}
	w.within[name] = true
	defer delete(w.within, name)
	steps, err := w.Steps(name)
	if err != nil {
		return outcome{}, err
	}
	goesOn := true
	for _, s := range steps {
		if s.Met == No {
			continue
		}
		o, next, err := w.step(s, RuleRef{name, s.Number, s.Handle})
		if err != nil {
			return outcome{}, err
		}
		if out.add(o); s.Met == Yes && !next {
			goesOn = false
			break
		}
	}
	if goesOn {
		out.fate |= returns
	}
	w.known[name] = out
	return out, nil
}

// step returns the outcomes of a rule whose conditions are met, and whether the packet may continue
// with the next rule.
func (w *Walk) step(s Step, at RuleRef) (o outcome, next bool, err error) {
	w.effects |= s.Sets
	switch s.Do {
	case Next:
		return outcome{}, true, nil
	case Jump, GoTo:
		o, err = w.chain(s.Chain)
		if s.Met == Maybe {
			o.unclear = at
		}
		if s.Do == Jump {
			next = o.fate&returns != 0
			o.fate &^= returns
		}
		return o, next, err
	}
	o.fate = [...]Fate{Pass: Passes, Drop: Drops, PassOrDrop: w.any(), Back: returns, Translate: Translates}[s.Do]
	if o.last = at; s.Met == Maybe || s.Do == PassOrDrop {
		o.unclear = at
	}
	return o, false, nil
}
