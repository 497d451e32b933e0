package systemd

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
)

// selfExe is the running program, even if its file was replaced or removed.
const selfExe = "/proc/self/exe"

// executable is the file that this process was started from.
type executable struct {
	paths     []string // as called, and with links resolved
	buildMark []byte   // contained in every build of this program
}

func newExecutable() executable {
	e := executable{}
	if info, ok := debug.ReadBuildInfo(); ok {
		e.buildMark = []byte("path\t" + info.Path + "\n") // as Go's linker writes it; see debug/buildinfo
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

// replaced reports whether the file that this process was started from is missing or another
// program now. Another build of this program does not count.
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
		if !e.isBuild(path) {
			return true
		}
	}
	return false
}

// isBuild reports whether a file is a build of this program. Package debug/buildinfo would find the
// mark faster, but make the program 3 % larger.
func (e executable) isBuild(path string) bool {
	f, err := os.Open(path)
	if err != nil || len(e.buildMark) == 0 {
		return false
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 256<<10)
	for {
		chunk, err := r.Peek(r.Size())
		if bytes.Contains(chunk, e.buildMark) {
			return true
		}
		if err != nil {
			return false
		}
		r.Discard(len(chunk) - len(e.buildMark)) // the mark may span two chunks
	}
}
