package systemd

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
)

// executable is the file that this process was started from.
type executable struct {
	running   os.FileInfo // the program, even if its file was replaced or removed
	paths     []string    // as called, and with links resolved
	buildMark []byte      // contained in every build of this program
}

func newExecutable() executable {
	e := executable{}
	if info, ok := debug.ReadBuildInfo(); ok {
		e.buildMark = []byte("path\t" + info.Path + "\n") // as Go's linker writes it; see debug/buildinfo
	}
	e.running, _ = os.Stat("/proc/self/exe")
	called, _ := exec.LookPath(os.Args[0])
	called, _ = filepath.Abs(called)
	resolved, _ := os.Executable()
	for _, path := range []string{called, resolved} {
		if e.isAt(path) {
			e.paths = append(e.paths, path)
		}
	}
	return e
}

// isAt reports whether a file is the running program.
func (e executable) isAt(path string) bool {
	st, err := os.Stat(path)
	return err == nil && os.SameFile(st, e.running)
}

// replaced reports whether the file that this process was started from is missing or another
// program now. Another build of this program does not count.
func (e executable) replaced() bool {
	return slices.ContainsFunc(e.paths, func(path string) bool { return !e.isAt(path) && !e.isBuild(path) })
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
