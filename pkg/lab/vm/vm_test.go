//go:build vm

package vm_test

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/lab/vm"
)

// slowness is an estimate of how much slower an emulated machine is, for the deadlines of tests;
// see wait.Slow.
const slowness = 8

// A suite is the selection of a package's tests that run in a guest.
type suite struct {
	pkg   string
	run   string // names of tests and subtests, as in -run; empty: all
	skip  string // names as in -skip: too slow in an emulated machine
	short string // used instead of run if VM_SHORT is set; empty: none
}

var suites = []suite{
	{pkg: "pkg/kernel", short: "TestSecondPassIsEmpty|TestDamageIsSeenAndRepaired|TestForeignFDBChangesAreTold|TestNextHops|TestInventory"},
	{pkg: "pkg/tunnel/e2e", skip: "TestStranger|TestUDPAllocatesNothing", short: "TestUDP|TestTUN|TestDeviceGone"},
	{pkg: "pkg/nftables", skip: "TestReplacements|TestConcurrentWriters|TestBigTables|TestWhichForeignChainsNeedAccepts", short: "TestGolden|TestPlain|TestIdle"},
	{pkg: "pkg/iptables", run: "TestSyncFromNothing|TestIPv6|TestDamage|TestRaw|TestDocker|TestWatch", short: "TestSyncFromNothing"},
	{pkg: "cmd/flanneld", run: "TestJoin|TestRepair|TestRestart|TestFieldConfigs|TestNewUplinkAddress|TestUDP|TestUDPRestart|TestUDPRepair",
		short: "TestRepair|TestUDPRepair|TestFieldConfigs/host-gw"},
	{pkg: "cmd/flanneld", run: zooModules, short: zooModules},
	{pkg: "cmd/flanneld", run: "TestDoctorOnMachine", short: "TestDoctorOnMachine"},
}

// zooModules are the hosts whose links need modules that not every kernel has. ZOO=all runs only
// these, with each backend.
const zooModules = "TestZooModules"

// TestImages creates the images that TestKernels needs, if they do not exist, so that "make caches"
// can create them in advance.
func TestImages(t *testing.T) {
	if err := vm.Missing(); err != nil {
		t.Fatal(err)
	}
	for _, kernel := range kernels() {
		image(t, kernel, func(s string) { t.Log(s) })
		image(t, kernel, func(s string) { t.Error(s) })
	}
}

func kernels() []string { return strings.Fields(cmp.Or(os.Getenv("VM_KERNELS"), "6.1 5.10")) }

func image(t *testing.T, kernel string, say func(string)) *vm.Image {
	t.Helper()
	release, ok := vm.Suite(kernel)
	if !ok {
		t.Fatalf("no Debian release is known to have kernel %q", kernel)
	}
	image, err := vm.NewImage(t.Context(), release, os.Getenv("VM_MIRROR"), say)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// TestKernels runs the suites on each kernel in VM_KERNELS. It runs one guest at a time, which uses
// the whole machine.
func TestKernels(t *testing.T) {
	if err := vm.Missing(); err != nil {
		t.Fatal(err)
	}
	files := t.TempDir()
	script := build(t, files)
	for _, kernel := range kernels() {
		t.Run(kernel, func(t *testing.T) {
			begin := time.Now()
			image := image(t, kernel, func(s string) { fmt.Println(s) })
			made := time.Since(begin)
			ctx, cancel := context.WithTimeout(t.Context(), 40*time.Minute)
			defer cancel()
			r := report{t: t, kernel: kernel}
			begin = time.Now()
			code, err := image.Run(ctx, files, script, func(line string) {
				if r.boot == 0 {
					r.boot = time.Since(begin)
				}
				r.line(line)
			})
			if err != nil {
				t.Error(err)
			}
			if code != 0 {
				t.Errorf("exit code %d", code)
			}
			for _, s := range suites {
				if s.pattern() != "" && r.passed[s.pkg] == 0 && !t.Failed() {
					t.Errorf("no test of %s has run", s.pkg)
				}
			}
			fmt.Printf("linux %s: %d tests passed, %d failed, %d skipped; image %.0f s, boot %.0f s, tests %.0f s\n", r.release,
				r.all(), len(r.failed), r.skipped, made.Seconds(), r.boot.Seconds(), (time.Since(begin) - r.boot).Seconds())
			for _, f := range r.failed { // list them again at the end of the output
				fmt.Printf("linux %s: failed: %s\n", r.release, f)
			}
		})
	}
}

// pattern returns the value of -run, or an empty string if no test of the package is to be run.
func (s suite) pattern() string {
	if os.Getenv("ZOO") != "" && s.run != zooModules {
		return ""
	}
	if os.Getenv("VM_SHORT") != "" {
		return anchored(s.short)
	}
	return anchored(cmp.Or(s.run, ".*"))
}

// anchored converts a pattern to one that matches whole names only.
func anchored(names string) string {
	if names == "" {
		return ""
	}
	levels := strings.Split(names, "/")
	for i, l := range levels {
		levels[i] = "^(" + l + ")$"
	}
	return strings.Join(levels, "/")
}

// build builds the daemon and the tests in dir, and the script that runs them in a guest.
func build(t *testing.T, dir string) (script string) {
	t.Helper()
	run := func(args ...string) {
		cmd := exec.Command("go", args...)
		cmd.Dir, cmd.Env = "../../..", append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", cmd, err, out)
		}
	}
	run("build", "-ldflags=-s -w", "-o", filepath.Join(dir, "usr/local/bin/flanneld"), "./cmd/flanneld")
	script = fmt.Sprintf("export FLANNELD=/usr/local/bin/flanneld FLANNEL_LAB_MACHINE=yes FLANNEL_LAB_SLOW=%d ZOO='%s'\nstatus=0\necho vm-release $(uname -r)\n",
		slowness, os.Getenv("ZOO"))
	for _, s := range suites {
		if s.pattern() == "" {
			continue
		}
		place := filepath.Join(dir, "tests", s.pkg)
		if !exists(place) { // a package may have several suites
			run("test", "-c", "-ldflags=-s -w", "-o", filepath.Join(place, "test"), "./"+s.pkg)
			if data := filepath.Join("../../..", s.pkg, "testdata"); exists(data) {
				if err := os.CopyFS(filepath.Join(place, "testdata"), os.DirFS(data)); err != nil {
					t.Fatal(err)
				}
			}
		}
		skip := ""
		if s.skip != "" {
			skip = fmt.Sprintf(" -test.skip '%s'", anchored(s.skip))
		}
		script += fmt.Sprintf("echo vm-package %s\ncd /tests/%s\n./test -test.v -test.parallel 1 -test.timeout 30m -test.run '%s'%s || status=1\n",
			s.pkg, s.pkg, s.pattern(), skip)
	}
	return script + "exit $status\n"
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// A report follows a guest's output. It prints the result of each test, and all output of failed
// tests.
type report struct {
	t                    *testing.T
	kernel, release, pkg string
	boot                 time.Duration
	said                 []string // output since the result of the last test
	passed               map[string]int
	failed               []string // packages and names of failed tests
	skipped              int
}

var result = regexp.MustCompile(`^( *)--- (PASS|FAIL|SKIP): (.*)`)

func (r *report) line(line string) {
	word, rest, _ := strings.Cut(line, " ")
	switch m := result.FindStringSubmatch(line); {
	case word == "vm-release":
		r.release = rest
	case word == "vm-package":
		r.pkg, r.said = rest, nil
	case m != nil:
		r.result(m[1], m[2], m[3])
	case strings.HasPrefix(line, "=== "):
	case strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: "):
		r.fail(line)
		fallthrough
	default:
		r.said = append(r.said, line)
	}
}

func (r *report) result(indent, verdict, test string) {
	switch verdict {
	case "PASS":
		if r.passed == nil {
			r.passed = map[string]int{}
		}
		r.passed[r.pkg]++
	case "SKIP":
		r.skipped++
	case "FAIL":
		r.fail(test)
	}
	if verdict != "PASS" {
		for _, s := range r.said {
			fmt.Println(s)
		}
	}
	fmt.Printf("%s %s %s%s %s\n", r.kernel, r.pkg, indent, verdict, test)
	// The result of a test precedes those of its subtests.
	if verdict != "PASS" || indent == "" {
		r.said = nil
	}
}

func (r *report) fail(what string) {
	r.failed = append(r.failed, r.pkg+" "+what)
	r.t.Errorf("%s %s", r.pkg, what)
}

func (r *report) all() (n int) {
	for _, p := range r.passed {
		n += p
	}
	return n
}
