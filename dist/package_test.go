package dist_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The version of a package must be valid for dpkg and rpm, and in the order of the tags.
func TestPackageVersion(t *testing.T) {
	type version struct{ tag, want string }
	check := func(t *testing.T, v version) {
		t.Helper()
		out, err := exec.Command("package/version", v.tag, "1785585600").CombinedOutput()
		if got := strings.TrimSuffix(string(out), "\n"); err != nil || got != v.want {
			t.Errorf("%s: %q, %v, want %q", v.tag, got, err, v.want)
		}
	}
	for _, v := range []version{
		{"dev", "0~20260801120000.dev"},
		{"169af1c-dirty", "0~20260801120000.169af1c+dirty"},
		{"v0.1.0-dirty", "0.1.0+dirty"},
		{"v0.1.0-3-g169af1c-dirty", "0.1.0+3.g169af1c.dirty"},
		{"v0.10.0/x y", "0.10.0.x.y"},
	} {
		check(t, v)
	}
	before := ""
	for _, v := range []version{
		{"169af1c", "0~20260801120000.169af1c"},
		{"v0.0.1", "0.0.1"},
		{"v0.1.0-alpha", "0.1.0~alpha"},
		{"v0.1.0-beta-2", "0.1.0~beta.2"},
		{"v0.1.0-rc.1", "0.1.0~rc.1"},
		{"v0.1.0-rc.1-12-g169af1c", "0.1.0~rc.1+12.g169af1c"},
		{"v0.1.0-rc.2", "0.1.0~rc.2"},
		{"v0.1.0", "0.1.0"},
		{"v0.1.0-3-g169af1c", "0.1.0+3.g169af1c"},
		{"v0.1.0-20-g0123abc", "0.1.0+20.g0123abc"},
		{"0.1.1", "0.1.1"},
		{"v0.10.0", "0.10.0"},
	} {
		check(t, v)
		if before != "" {
			sorts(t, before, v.want)
		}
		before = v.want
	}
}

// sorts checks with dpkg and rpm, if they are installed, that one version is before another.
func sorts(t *testing.T, before, after string) {
	t.Helper()
	if dpkg, err := exec.LookPath("dpkg"); err == nil {
		if out, err := exec.Command(dpkg, "--compare-versions", before, "lt", after).CombinedOutput(); err != nil {
			t.Errorf("for dpkg %s is not before %s: %v %s", before, after, err, out)
		}
	}
	if rpm, err := exec.LookPath("rpm"); err == nil {
		lua := fmt.Sprintf("%%{lua:print(rpm.vercmp(%q, %q))}", before, after)
		if out, err := exec.Command(rpm, "--eval", lua).CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "-1" {
			t.Errorf("for rpm %s is not before %s: %v %s", before, after, err, out)
		}
	}
}

// daemon returns the path of a built flanneld.
func daemon(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("FLANNELD"); path != "" {
		return path
	}
	path := filepath.Join(t.TempDir(), "flanneld")
	cmd := exec.Command("go", "build", "-o", path, "flanneld/cmd/flanneld")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

// TestManualFlags checks that the manual has the flags in the help of the daemon and of its commands,
// in the same order, with the same names of values and the same defaults; without those of the daemon
// that commands have too.
func TestManualFlags(t *testing.T) {
	program := daemon(t)
	const helps = `set -e
		"$0" --help; "$0" status --help
		for c in doctor trace; do "$0" $c --help | sed /--etcd-endpoints/,/--public-ipv6/d; done
		for c in plan "config set" "leases reserve"; do "$0" $c --help | sed /--etcd-endpoints/,\$d; done
		"$0" leases release --help | sed "/--etcd-endpoints/,\$d; /--json/d" # which is that of reserve
		"$0" cleanup --help`
	help, err := exec.Command("sh", "-c", helps, program).Output()
	if err != nil {
		t.Fatal(err)
	}
	// The text of a flag continues in lines that are indented further.
	text := regexp.MustCompile(`\n {8,}`).ReplaceAllString(string(help), " ")
	quoted := regexp.MustCompile(`\(default "?([^")]*)"?\)`)
	var want []string
	for _, m := range regexp.MustCompile(`(?m)^ +--(\S+)(?: (\S+))?  +(.*)$`).FindAllStringSubmatch(text, -1) {
		flag := "--" + m[1]
		if m[2] != "" {
			flag += "=" + m[2]
		}
		if d := quoted.FindStringSubmatch(m[3]); d != nil {
			flag += " default " + d[1]
		}
		want = append(want, flag)
	}
	if len(want) < 25 {
		t.Fatalf("only %q in the help:\n%s", want, help)
	}

	var got []string
	for line := range strings.Lines(read(t, "../cmd/flanneld/flanneld.8")) {
		line = strings.TrimSpace(line)
		if flag, ok := strings.CutPrefix(line, ".It Fl -"); ok {
			flag, value, _ := strings.Cut(flag, " Ns = Ns Ar ")
			if value != "" {
				flag += "=" + value
			}
			got = append(got, "--"+flag)
		}
		if d, ok := strings.CutPrefix(line, "Default: "); ok {
			got[len(got)-1] += " default " + d
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("the manual has\n%s\nthe help has\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestManualFormat(t *testing.T) {
	if _, err := exec.LookPath("groff"); err != nil {
		t.Skip("groff not found: apt-get install groff-base")
	}
	cmd := exec.Command("groff", "-mdoc", "-Tascii", "-ww", "-z", "../cmd/flanneld/flanneld.8")
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v: %s", err, out)
	}
}

// TestMaintainerScripts checks what the packages' scripts do with the arguments of dpkg and rpm.
func TestMaintainerScripts(t *testing.T) {
	const (
		reload  = "daemon-reload"
		restart = "--no-block try-restart flanneld.service"
		stop    = "stop flanneld.service"
		disable = "--no-reload disable flanneld.service"
	)
	for _, c := range []struct {
		script, args string
		booted       []string // arguments of systemctl on a host
		chroot       []string // and where systemd does not run
	}{
		{"postinstall", "configure", []string{reload}, nil},
		{"postinstall", "configure 0.1.0", []string{reload, restart}, nil},
		{"postinstall", "abort-upgrade 0.1.0", []string{reload}, nil},
		{"postinstall", "1", []string{reload}, nil},
		{"postinstall", "2", []string{reload, restart}, nil},
		{"preremove", "remove", []string{stop, disable}, []string{disable}},
		{"preremove", "upgrade 0.2.0", nil, nil},
		{"preremove", "0", []string{stop, disable}, []string{disable}},
		{"preremove", "1", nil, nil},
		{"postremove", "remove", []string{reload}, nil},
		{"postremove", "upgrade 0.2.0", []string{reload}, nil},
		{"postremove", "purge", []string{reload}, nil},
		{"postremove", "0", []string{reload}, nil},
		{"postremove", "1", []string{reload}, nil},
	} {
		for place, want := range map[string][]string{"booted": c.booted, "chroot": c.chroot, "without systemd": nil} {
			t.Run(c.script+" "+c.args+" "+place, func(t *testing.T) {
				got, purged := maintain(t, c.script, c.args, place)
				if !slices.Equal(got, want) {
					t.Errorf("systemctl %q, want %q", got, want)
				}
				if purged != (c.args == "purge") {
					t.Errorf("/run/flannel removed: %v", purged)
				}
			})
		}
	}
}

// maintain runs a script in a place. It returns the calls of systemctl and whether /run/flannel was
// removed.
func maintain(t *testing.T, script, args, place string) (calls []string, purged bool) {
	t.Helper()
	root := t.TempDir()
	dirs := []string{"bin", "run/flannel"}
	if place == "booted" {
		dirs = append(dirs, "run/systemd/system")
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if place != "without systemd" {
		executable(t, filepath.Join(root, "bin/systemctl"), "echo \"$*\" >>"+root+"/calls")
	}
	// Only these commands, so that this machine's systemctl is not in the PATH.
	for _, name := range []string{"sh", "rm"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(root, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	text := strings.ReplaceAll(read(t, "package/"+script), "/run/", root+"/run/")
	cmd := exec.Command("sh", append([]string{"-c", text, script}, strings.Fields(args)...)...)
	cmd.Env = []string{"PATH=" + root + "/bin"}
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("%v: %s", err, out)
	}
	if text, err := os.ReadFile(filepath.Join(root, "calls")); err == nil {
		calls = strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	}
	_, err := os.Stat(filepath.Join(root, "run/flannel"))
	return calls, os.IsNotExist(err)
}

// TestFlanneldStart checks the start script of RHEL's package with the variables of both of its
// versions.
func TestFlanneldStart(t *testing.T) {
	fake := filepath.Join(t.TempDir(), "flanneld")
	executable(t, fake, printArgs)
	script := strings.ReplaceAll(read(t, "package/flanneld-start"), "/usr/bin/flanneld ", fake+" ")
	for _, c := range []struct{ env, want []string }{
		{nil, []string{"-iface", "eth 0"}},
		{[]string{"FLANNEL_ETCD=http://old", "FLANNEL_ETCD_KEY=/old"}, []string{"-etcd-endpoints=http://old", "-etcd-prefix=/old", "-iface", "eth 0"}},
		{[]string{"FLANNEL_ETCD=http://old", "FLANNEL_ETCD_ENDPOINTS=http://a, http://b", "FLANNEL_ETCD_PREFIX=/new"},
			[]string{"-etcd-endpoints=http://a, http://b", "-etcd-prefix=/new", "-iface", "eth 0"}},
	} {
		cmd := exec.Command("sh", "-c", script, "flanneld-start", "-iface", "eth 0")
		cmd.Env = c.env
		out, err := cmd.CombinedOutput()
		if got := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n"); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%q: %q, %v, want %q", c.env, got, err, c.want)
		}
	}
}
