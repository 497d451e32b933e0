// Package machine boots hosts with a real systemd as PID 1, each in its own root file system and
// network namespace, on the fabric of a lab. The system test installs flanneld and docker on them.
//
// A host is not a virtual machine: it uses the kernel of this machine. It needs root and the
// programs that Missing lists.
//
// Invariant: what a host does stays inside it. Its root file system is an overlay over one that is
// never written to, its mounts are in their own mount namespace, and its processes end with the
// program that owns the lab. What a killed lab has left is removed by the next one.
package machine

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// Missing returns what this package lacks on this machine, with the command that installs it, or
// nil.
func Missing() error {
	var errs []error
	for _, need := range []struct{ program, pkg string }{
		{"systemd-nspawn", "systemd-container"},
		{"mmdebstrap", "mmdebstrap"},
		{"unshare", "util-linux"},
		{"nsenter", "util-linux"},
		{"ip", "iproute2"},
	} {
		if _, err := exec.LookPath(need.program); err != nil {
			errs = append(errs, fmt.Errorf("%s not found (apt-get install %s)", need.program, need.pkg))
		}
	}
	if os.Geteuid() != 0 {
		errs = append(errs, errors.New("not root"))
	}
	return errors.Join(errs...)
}

// command runs a program. Its error contains the program's output.
func command(cmd *exec.Cmd) (string, error) {
	var out, complaint strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w\n%s%s", strings.Join(cmd.Args, " "), err, &out, &complaint)
	}
	return out.String(), nil
}
