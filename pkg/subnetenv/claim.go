package subnetenv

import (
	"bytes"
	"fmt"
	"path/filepath"

	"flanneld/pkg/lease"
)

// ClaimPath returns the path of the claim for the path of a subnet.env, so that two daemons with
// different files have different claims.
func ClaimPath(path string) string { return path + ".lease" }

// Files returns the paths of all files that belong to the subnet.env at path, including path.
func Files(path string) []string { return []string{path, ClaimPath(path)} }

// SocketPath returns the path of the socket on which the daemon with the subnet.env at path answers.
// Two daemons on a host have different files.
func SocketPath(path string) string {
	if filepath.Clean(path) == DefaultFile {
		return filepath.Join(filepath.Dir(DefaultFile), "flanneld.sock")
	}
	return path + ".sock"
}

// ReadClaim reads the claim beside the subnet.env at path. If it is missing, it returns the zero
// Claim and no error.
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

// WriteClaim writes the claim beside the subnet.env at path if it differs, and reports whether it
// has changed it. It creates missing directories.
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
