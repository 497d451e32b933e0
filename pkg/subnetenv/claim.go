package subnetenv

import (
	"bytes"
	"fmt"

	"flanneld/pkg/lease"
)

// ClaimPath returns the path of the claim for the path of a subnet.env: two daemons with two
// of these have two claims.
func ClaimPath(path string) string { return path + ".lease" }

// Files returns the paths of all that a daemon keeps with the subnet.env at path, this one
// included.
func Files(path string) []string { return []string{path, ClaimPath(path)} }

// ReadClaim reads the claim that was written beside the subnet.env at path. A
// missing one is the zero Claim and no error.
func ReadClaim(path string) (lease.Claim, error) {
	path = ClaimPath(path)
	b, err := read(path)
	if err != nil {
		return lease.Claim{}, fmt.Errorf("read claim: %w", err)
	}
	if len(b) == 0 {
		return lease.Claim{}, nil
	}
	c, err := lease.DecodeClaim(b)
	if err != nil {
		return lease.Claim{}, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// WriteClaim makes the claim beside the subnet.env at path c, and reports whether it had to
// change it. Missing directories are made.
func WriteClaim(path string, c lease.Claim) (changed bool, err error) {
	path = ClaimPath(path)
	want, err := c.Encode()
	if err != nil {
		return false, fmt.Errorf("write claim: %w", err)
	}
	want = append(want, '\n')
	if have, err := read(path); err == nil && bytes.Equal(have, want) {
		return false, nil
	}
	if err := replace(path, want, 0o644); err != nil {
		return false, fmt.Errorf("write claim: %w", err)
	}
	return true, nil
}
