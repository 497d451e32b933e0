package subnetenv

import (
	"fmt"

	"flanneld/pkg/lease"
)

// claimPath is that of the claim, for the path of a subnet.env: two daemons with two
// of these have two claims.
func claimPath(path string) string { return path + ".lease" }

// Files returns the paths of all that a daemon keeps with the subnet.env at path, this one included.
func Files(path string) []string { return []string{path, claimPath(path)} }

// ReadClaim reads the claim that was written beside the subnet.env at path. A
// missing one is the zero Claim and no error.
func ReadClaim(path string) (lease.Claim, error) {
	path = claimPath(path)
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

// WriteClaim writes c beside the subnet.env at path. Missing directories are made.
func WriteClaim(path string, c lease.Claim) error {
	b, err := c.Encode()
	if err == nil {
		err = replace(claimPath(path), append(b, '\n'), 0o644)
	}
	if err != nil {
		return fmt.Errorf("write claim: %w", err)
	}
	return nil
}
