// Package machine boots hosts as people have them: each a real systemd as PID 1, in a root file system and a network
// namespace of its own, on the fabric of a lab. The system test installs flanneld and docker on them.
//
// It is not a virtual machine: the kernel is this machine's own. It needs root and the programs that Missing names.
//
// Invariant: what a host does stays in it. Its root file system is an overlay over one that is never written to, its
// mounts are in a mount namespace of its own, and its processes die with the program that owns the lab, however that
// ends; what is left then, the next lab removes.
package machine

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// Missing says what this package lacks on this machine, and how to get it. It is nil where everything is there.
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

// command runs a program; its error has what the program said.
func command(cmd *exec.Cmd) (string, error) {
	var out, complaint strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w\n%s%s", strings.Join(cmd.Args, " "), err, &out, &complaint)
	}
	return out.String(), nil
}
