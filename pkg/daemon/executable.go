package daemon

import (
	"debug/buildinfo"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
)

// selfExe is the running program, even after its file was replaced or removed.
const selfExe = "/proc/self/exe"

// executable is the file that this process was started from.
type executable struct {
	paths []string // as it was called, and with links resolved
	main  string   // path of the main package, which every build of this program has
}

func newExecutable() executable {
	e := executable{}
	if info, ok := debug.ReadBuildInfo(); ok {
		e.main = info.Path
	}
	running, err := os.Stat(selfExe)
	if err != nil {
		return e
	}
	called, err := exec.LookPath(os.Args[0])
	if err == nil {
		called, err = filepath.Abs(called)
	}
	if err != nil {
		called = ""
	}
	resolved, _ := os.Executable()
	for _, path := range []string{called, resolved} {
		if st, err := os.Stat(path); err == nil && os.SameFile(st, running) {
			e.paths = append(e.paths, path)
		}
	}
	return e
}

// replaced reports whether another program is now where this one was started from, or none; another build of this one
// does not count.
func (e executable) replaced() bool {
	running, err := os.Stat(selfExe)
	if err != nil {
		return false
	}
	for _, path := range e.paths {
		st, err := os.Stat(path)
		if err == nil && os.SameFile(st, running) {
			continue
		}
		if info, err := buildinfo.ReadFile(path); err != nil || info.Path != e.main {
			return true
		}
	}
	return false
}
