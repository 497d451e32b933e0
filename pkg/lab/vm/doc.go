// Package vm boots kernels other than this machine's own, each a Debian release's in an emulated machine, and runs a
// script there. The project's tests run in it on kernels as old as those in the field.
//
// It is not a host as people have it, for that see package machine: the guest has no disk, no network card and no init
// but a shell script. Its root file system is in memory, and has little more than the kernel's modules and the
// release's own packet filter tools. Emulation needs no hardware support and costs a factor of ten or more in speed.
//
// Invariant: nothing of a guest outlives Run but the lines it has written, and an image is never written to once it is in
// the cache.
package vm

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"strings"
)

// Missing says what this package lacks on this machine, and how to get it. It is nil where everything is there.
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

// command runs a program in a directory; its error has what the program said.
func command(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
