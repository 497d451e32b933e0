package lease

import (
	"encoding/json"
	"fmt"
)

// Claim is what a host remembers of its lease, so that it recognizes the lease after its public IP
// has changed. Another host writes an identical lease for the same subnet only if it has a copy of
// the claim.
type Claim struct {
	Store   string // the store that has the lease, if there are several; empty if unknown
	Subnets Subnets
	Held    Attrs // attributes as last written or found
	Next    Attrs // attributes of the write in progress, whose result a crash leaves unknown

	// Revision is the revision of this host's last write in Store. It is 0 while a write is in
	// progress and in claims of older versions.
	Revision uint64
	// Adopted has the attributes of the lease when this host reused it, if they differed from its
	// own. Otherwise it is zero.
	Adopted Attrs
}

// Matches reports whether l has attributes that this host wrote. A lease that is being released
// matches, too.
func (c Claim) Matches(l Lease) bool {
	a := l.Attrs
	a.Leaving = false
	return c.Subnets.IsValid() && l.Subnets == c.Subnets && (a == c.Held || a == c.Next)
}

// Covers reports whether l is the lease of this claim and has not been written by others since,
// except to release it.
func (c Claim) Covers(l Lease) bool { return c.Matches(l) && !c.WrittenSince(l) }

// WrittenSince reports whether the lease of this claim is known to have been written after this
// host's last write.
func (c Claim) WrittenSince(l Lease) bool {
	return l.Subnets == c.Subnets && c.Revision != 0 && l.Revision > c.Revision && !l.Leaving
}

// claimForm is the JSON form of a Claim. Held, Next and Former (Claim.Adopted) are values as in the
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

// DecodeClaim parses a claim encoded by this or an older version.
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
