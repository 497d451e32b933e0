package cleanup

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"flanneld/pkg/presence"
	"flanneld/pkg/subnetenv"
)

// DefaultSubnetFile is the default of -subnet-file.
const DefaultSubnetFile = subnetenv.DefaultFile

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
	for kv := range strings.SplitSeq(string(env), "\x00") {
		if v, ok := strings.CutPrefix(kv, "FLANNELD_SUBNET_FILE="); ok && v != "" {
			path = v
		}
	}
	words := strings.Split(string(args), "\x00")
	for i, word := range words {
		name, value, has := strings.Cut(strings.TrimLeft(word, "-"), "=")
		switch {
		case name != "subnet-file" || !strings.HasPrefix(word, "-"):
		case has:
			path = value
		case i+1 < len(words):
			path = words[i+1]
		}
	}
	return path
}

func samePath(a, b string) bool {
	x, errA := filepath.Abs(a)
	y, errB := filepath.Abs(b)
	return errA == nil && errB == nil && x == y
}
