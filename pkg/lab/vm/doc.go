// Package vm boots the kernels of other Debian releases in emulated machines and runs a script
// there. It runs the project's tests on kernels as old as those in use.
//
// A guest is not a complete host (see package machine for that): it has no disk and no network
// card, and its init is a shell script. Its root file system is in memory and has little more than
// the kernel's modules and the release's packet filter tools. Emulation needs no hardware support
// and is ten or more times slower.
//
// Invariant: nothing of a guest outlives Run except its output, and an image in the cache is never
// written to.
package vm

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"strings"
)

// Missing returns what this package lacks on this machine, with the command that installs it, or
// nil.
func Missing() error {
	var errs []error
	for _, need := range []struct{ program, pkg string }{
		{"qemu-system-x86_64", "qemu-system-x86"},
		{"mmdebstrap", "mmdebstrap"},
	} {
		if _, err := exec.LookPath(need.program); err != nil {
			errs = append(errs, fmt.Errorf("%s not found (apt-get install --no-install-recommends %s)", need.program, need.pkg))
		}
	}
	if runtime.GOARCH != "amd64" {
		errs = append(errs, errors.New("this machine is not amd64, whose kernels these are"))
	}
	return errors.Join(errs...)
}

// command runs a program in a directory. Its error contains the program's output.
func command(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
