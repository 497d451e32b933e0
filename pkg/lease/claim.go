package lease

import (
	"encoding/json"
	"fmt"
	"net/netip"
)

// Claim is what a host knows of the lease that it holds: enough to know it again
// when the address it was published with is no longer the host's. Nobody else writes
// the same, for the same subnet.
type Claim struct {
	Store  string // which of several stores the lease is in; empty: not known
	Subnet netip.Prefix
	Held   Attrs // as last written or found
	Next   Attrs // as about to be written: who dies without an answer does not know which
}

// Covers tells whether l is the lease of this claim. One that was being given up is.
func (c Claim) Covers(l Lease) bool {
	a := l.Attrs
	a.Leaving = false
	return c.Subnet.IsValid() && l.Subnet == c.Subnet && (a == c.Held || a == c.Next)
}

// claimForm is the JSON form of a Claim; Held and Next are values as in the registry.
type claimForm struct {
	Store      string `json:",omitempty"`
	Subnet     string // a key as in the registry
	Held, Next json.RawMessage
}

// Encode gives the claim as JSON.
func (c Claim) Encode() ([]byte, error) {
	form := claimForm{Store: c.Store, Subnet: Key(c.Subnet)}
	var err error
	if form.Held, err = c.Held.Encode(); err != nil {
		return nil, err
	}
	if form.Next, err = c.Next.Encode(); err != nil {
		return nil, err
	}
	return json.Marshal(form)
}

// DecodeClaim reads what Encode wrote.
func DecodeClaim(b []byte) (c Claim, err error) {
	var form claimForm
	if err := json.Unmarshal(b, &form); err != nil {
		return Claim{}, fmt.Errorf("claim is not JSON: %w", err)
	}
	c.Store = form.Store
	if c.Subnet, err = ParseKey(form.Subnet); err != nil {
		return Claim{}, fmt.Errorf("claim: %w", err)
	}
	if c.Held, err = DecodeAttrs(form.Held); err != nil {
		return Claim{}, fmt.Errorf("claim: Held: %w", err)
	}
	if c.Next, err = DecodeAttrs(form.Next); err != nil {
		return Claim{}, fmt.Errorf("claim: Next: %w", err)
	}
	return c, nil
}
