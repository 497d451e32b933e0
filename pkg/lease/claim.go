package lease

import (
	"encoding/json"
	"fmt"
)

// Claim is what a host knows of the lease that it holds: enough to know it again
// when the address it was published with is no longer the host's. Nobody else writes
// the same, for the same subnet, unless he has a copy of the claim.
type Claim struct {
	Store   string // which of several stores the lease is in; empty: not known
	Subnets Subnets
	Held    Attrs // as last written or found
	Next    Attrs // as about to be written: who dies without an answer does not know which

	// Revision is that of the last write of this host, in Store. It is 0 while a write
	// has no answer yet, and in claims written by older versions.
	Revision uint64
	// Former is what the lease said when this host took it up although it did not say
	// what this host writes. It is zero if that never was so.
	Adopted Attrs
}

// Matches reports whether l says what this host wrote. One that is being given up does.
func (c Claim) Matches(l Lease) bool {
	a := l.Attrs
	a.Leaving = false
	return c.Subnets.IsValid() && l.Subnets == c.Subnets && (a == c.Held || a == c.Next)
}

// Covers reports whether l is the lease of this claim as this host left it: nobody has
// written it since, but for giving it up.
func (c Claim) Covers(l Lease) bool { return c.Matches(l) && !c.WrittenSince(l) }

// WrittenSince reports whether the lease of this claim is known to have been written
// after this host's last write.
func (c Claim) WrittenSince(l Lease) bool {
	return l.Subnets == c.Subnets && c.Revision != 0 && l.Revision > c.Revision && !l.Leaving
}

// claimForm is the JSON form of a Claim; Held, Next and Former are values as in the
// registry.
type claimForm struct {
	Store      string `json:",omitempty"`
	Subnet     string // a key as in the registry
	Held, Next json.RawMessage
	Revision   uint64          `json:",omitempty"`
	Former     json.RawMessage `json:",omitempty"`
}

// Encode returns the claim as JSON.
func (c Claim) Encode() ([]byte, error) {
	form := claimForm{Store: c.Store, Subnet: Key(c.Subnets), Revision: c.Revision}
	var err error
	if form.Held, err = c.Held.Encode(); err != nil {
		return nil, err
	}
	if form.Next, err = c.Next.Encode(); err != nil {
		return nil, err
	}
	if c.Adopted != (Attrs{}) {
		if form.Former, err = c.Adopted.Encode(); err != nil {
			return nil, err
		}
	}
	return json.Marshal(form)
}

// DecodeClaim reads what Encode wrote, or an older version's Encode.
func DecodeClaim(b []byte) (c Claim, err error) {
	var form claimForm
	if err := json.Unmarshal(b, &form); err != nil {
		return Claim{}, fmt.Errorf("claim is not JSON: %w", err)
	}
	c.Store, c.Revision = form.Store, form.Revision
	if c.Subnets, err = ParseKey(form.Subnet); err != nil {
		return Claim{}, fmt.Errorf("claim: %w", err)
	}
	if c.Held, err = DecodeAttrs(form.Held); err != nil {
		return Claim{}, fmt.Errorf("claim: Held: %w", err)
	}
	if c.Next, err = DecodeAttrs(form.Next); err != nil {
		return Claim{}, fmt.Errorf("claim: Next: %w", err)
	}
	if len(form.Former) > 0 {
		if c.Adopted, err = DecodeAttrs(form.Former); err != nil {
			return Claim{}, fmt.Errorf("claim: Former: %w", err)
		}
	}
	return c, nil
}
