package cleanup

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"flanneld/pkg/presence"
)

// DefaultSubnetFile is the default of -subnet-file, the path that docker's units read.
const DefaultSubnetFile = "/run/flannel/subnet.env"

// refuseIfRunning returns an error if a flanneld runs that is not registered: an original, an older
// release, or one that still waits for the network config.
func (c *cleanup) refuseIfRunning() error {
	holders, err := presence.Daemons()
	if err != nil {
		return err
	}
	known := map[int]bool{os.Getpid(): true}
	for _, h := range holders {
		known[h.PID] = true
	}
	here, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	names, _ := filepath.Glob("/proc/[0-9]*/comm") // its only error is that of a bad pattern
	for _, name := range names {
		dir := filepath.Dir(name)
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || known[pid] {
			continue
		}
		comm, err := os.ReadFile(name)
		if err != nil || strings.TrimSpace(string(comm)) != "flanneld" {
			continue
		}
		if ns, err := os.Readlink(dir + "/ns/net"); err != nil || ns != here {
			continue
		}
		args, _ := os.ReadFile(dir + "/cmdline")
		env, _ := os.ReadFile(dir + "/environ")
		if samePath(subnetFileOf(args, env), c.SubnetFile) {
			return fmt.Errorf("refused: a flanneld runs with this subnet file (PID %d); stop it first", pid)
		}
	}
	return nil
}

// subnetFileOf returns the subnet file in the arguments and the environment of a flanneld, in the
// format of /proc.
func subnetFileOf(args, env []byte) string {
	path := DefaultSubnetFile
	for kv := range bytes.SplitSeq(env, []byte{0}) {
		if v, ok := bytes.CutPrefix(kv, []byte("FLANNELD_SUBNET_FILE=")); ok && len(v) > 0 {
			path = string(v)
		}
	}
	next := false
	for arg := range bytes.SplitSeq(args, []byte{0}) {
		if next {
			path = string(arg)
		}
		name, value, has := strings.Cut(string(bytes.TrimLeft(arg, "-")), "=")
		named := len(arg) > 0 && arg[0] == '-' && name == "subnet-file"
		if next = named && !has; named && has {
			path = value
		}
	}
	return path
}

func samePath(a, b string) bool {
	x, errA := filepath.Abs(a)
	y, errB := filepath.Abs(b)
	return errA == nil && errB == nil && x == y
}
