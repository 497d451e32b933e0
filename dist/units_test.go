package dist_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"flanneld/pkg/backend"
)

// A unit is the part of a unit file that these tests check: the assignments of its [Unit] and
// [Service] sections, in order.
type unit []struct{ key, value string }

func (u unit) all(key string) (values []string) {
	for _, a := range u {
		if a.key != key {
			continue
		}
		if a.value == "" {
			values = nil // an empty assignment clears the list
			continue
		}
		values = append(values, a.value)
	}
	return values
}

func (u unit) one(t *testing.T, key string) string {
	t.Helper()
	values := u.all(key)
	if len(values) != 1 {
		t.Fatalf("%s: %q, want exactly one", key, values)
	}
	return values[0]
}

// parseUnit parses a unit file (systemd.syntax(7)).
func parseUnit(text string) (u unit) {
	section := ""
	for line := range strings.SplitSeq(strings.ReplaceAll(text, "\\\n", " "), "\n") {
		line = strings.TrimSpace(line)
		switch key, value, ok := strings.Cut(line, "="); {
		case line == "" || line[0] == '#' || line[0] == ';':
		case line[0] == '[':
			section = line
		case ok && section != "[Install]":
			u = append(u, struct{ key, value string }{strings.TrimSpace(key), strings.TrimSpace(value)})
		}
	}
	return u
}

// words splits at blanks and removes quotes, as systemd does with a command line and with the value
// of a variable that is a word of its own ($VARIABLE).
func words(s string) (words []string) {
	var word strings.Builder
	quote, inside := rune(0), false
	for _, c := range s + " " {
		switch {
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(c)
		case c == '\'' || c == '"':
			quote, inside = c, true
		case c == ' ' || c == '\t':
			if inside {
				words = append(words, word.String())
				word.Reset()
			}
			inside = false
		default:
			word.WriteRune(c)
			inside = true
		}
	}
	return words
}

// argv expands a command line (systemd.service(5)): $FOO alone becomes any number of words, ${FOO}
// a part of one, $$ a dollar sign.
func argv(command string, env map[string]string) (argv []string) {
	variable := regexp.MustCompile(`\$\$|\$\{[A-Za-z0-9_]+\}`)
	alone := regexp.MustCompile(`^\$[A-Za-z0-9_]+$`)
	for _, word := range words(command) {
		if alone.MatchString(word) {
			argv = append(argv, words(env[word[1:]])...)
			continue
		}
		argv = append(argv, variable.ReplaceAllStringFunc(word, func(v string) string {
			if v == "$$" {
				return "$"
			}
			return env[strings.Trim(v, "${}")]
		}))
	}
	return argv
}

// environ reads the lines of an EnvironmentFile=.
func environ(text string, env map[string]string) {
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if ok && key[0] != '#' {
			env[key] = strings.Trim(value, `"`)
		}
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// execute runs a unit's command as systemd does, with the environment env only, and returns its
// output lines.
func execute(t *testing.T, command string, env map[string]string) []string {
	t.Helper()
	args := argv(command, env)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	for _, key := range slices.Sorted(maps.Keys(env)) {
		cmd.Env = append(cmd.Env, key+"="+env[key])
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || stderr.Len() > 0 {
		t.Fatalf("%q: %v: %s", args, err, &stderr)
	}
	return strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
}

// The unit must start the daemon correctly with the settings files of the packages of other
// versions and distributions.
func TestUnitEnvironments(t *testing.T) {
	type files struct{ sysconfig, defaults, options string }
	endpoints := "FLANNELD_ETCD_ENDPOINTS="
	prefix := "FLANNELD_ETCD_PREFIX="
	for _, c := range []struct {
		name  string
		files files
		args  []string
		env   []string // FLANNELD_* that are set and not empty
	}{
		{"nothing", files{}, nil, nil},
		{"sysconfig, old names",
			files{sysconfig: "FLANNEL_ETCD=\"http://e1:2379,http://e2:2379\"\nFLANNEL_ETCD_KEY=\"/atomic.io/network\"\nFLANNEL_OPTIONS=\"-iface=eth0 --ip-masq\"\n"},
			[]string{"-iface=eth0", "--ip-masq"}, []string{endpoints + "http://e1:2379,http://e2:2379", prefix + "/atomic.io/network"}},
		{"sysconfig, new names",
			files{sysconfig: "FLANNEL_ETCD_ENDPOINTS=http://e1:2379\nFLANNEL_ETCD_PREFIX=/atomic.io/network\n#FLANNEL_OPTIONS=\"\"\n"},
			nil, []string{endpoints + "http://e1:2379", prefix + "/atomic.io/network"}},
		{"sysconfig, both",
			files{sysconfig: "FLANNEL_ETCD=http://old\nFLANNEL_ETCD_KEY=/old\nFLANNEL_ETCD_ENDPOINTS=http://new\nFLANNEL_ETCD_PREFIX=/new\n"},
			nil, []string{endpoints + "http://new", prefix + "/new"}},
		{"sysconfig, only a prefix", files{sysconfig: "FLANNEL_ETCD_PREFIX=/new\n"}, nil, []string{prefix + "/new"}},
		{"sysconfig, the sample", files{sysconfig: read(t, "sysconfig/flanneld")},
			nil, []string{endpoints + "http://127.0.0.1:2379", prefix + "/atomic.io/network"}},
		{"default, the sample", files{defaults: read(t, "default/flanneld")}, nil, nil},
		{"default", files{defaults: "FLANNELD_ETCD_ENDPOINTS=http://e1:2379\nFLANNELD_IFACE=eth0\nFLANNEL_OPTIONS=-v=1\n"},
			[]string{"-v=1"}, []string{endpoints + "http://e1:2379", "FLANNELD_IFACE=eth0"}},
		{"cloud-config",
			files{options: "FLANNELD_ETCD_ENDPOINTS=http://e1:2379\nFLANNELD_ETCD_PREFIX=/net\nFLANNELD_IFACE=10.0.0.1\nFLANNELD_IP_MASQ=true"},
			nil, []string{endpoints + "http://e1:2379", prefix + "/net", "FLANNELD_IFACE=10.0.0.1", "FLANNELD_IP_MASQ=true"}},
		{"the daemon's own names win",
			files{sysconfig: "FLANNEL_ETCD=http://old\nFLANNEL_ETCD_PREFIX=/old\n", options: "FLANNELD_ETCD_ENDPOINTS=http://new"},
			nil, []string{endpoints + "http://new", prefix + "/old"}},
		{"quotes and wildcards",
			files{sysconfig: "FLANNEL_ETCD=http://e1/?a=*&b='c d'\nFLANNEL_OPTIONS=-iface-regex='eth 0.*' --public-ip=$(id) *\n"},
			[]string{"-iface-regex=eth 0.*", "--public-ip=$(id)", "*"}, []string{endpoints + "http://e1/?a=*&b='c d'"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			fake := filepath.Join(t.TempDir(), "flanneld")
			executable(t, fake, "echo $PPID; for a; do echo \"arg $a\"; done; env | grep '^FLANNELD_[A-Z_]*=.' | sort")
			u := parseUnit(strings.ReplaceAll(read(t, "flanneld.service"), "/usr/local/bin/flanneld", fake))

			env := map[string]string{}
			for _, assignment := range u.all("Environment") {
				environ(assignment, env)
			}
			for _, file := range u.all("EnvironmentFile") {
				text, ok := map[string]string{
					"-/etc/sysconfig/flanneld":  c.files.sysconfig,
					"-/etc/default/flanneld":    c.files.defaults,
					"-/run/flannel/options.env": c.files.options,
				}[file]
				if !ok {
					t.Fatalf("EnvironmentFile=%s", file)
				}
				environ(text, env)
			}

			want := []string{fmt.Sprint(os.Getpid())} // the same PID: the shell has executed the daemon
			for _, arg := range c.args {
				want = append(want, "arg "+arg)
			}
			want = append(want, slices.Sorted(slices.Values(c.env))...)
			if got := execute(t, u.one(t, "ExecStart"), env); !slices.Equal(got, want) {
				t.Errorf("got  %q\nwant %q", got, want)
			}
		})
	}
}

func TestUnitService(t *testing.T) {
	u := parseUnit(read(t, "flanneld.service"))
	for key, want := range map[string]string{
		"Type":                  "notify",
		"Restart":               "always",
		"StartLimitIntervalSec": "0", // or it would not be started after many restarts
		"TimeoutStartSec":       "0", // the daemon waits for etcd without a time limit

		// Without these, the udp backend would lose packets at a restart, and docker its subnet.
		"FileDescriptorStoreMax":   "16",
		"RuntimeDirectory":         "flannel",
		"RuntimeDirectoryPreserve": "yes",
	} {
		if got := u.one(t, key); got != want {
			t.Errorf("%s=%s, want %s", key, got, want)
		}
	}
}

// Both drop-ins for docker must have the same options as the result.
func TestDockerDropIns(t *testing.T) {
	for _, c := range []struct {
		dir  string
		want []string
	}{
		{"docker-bip", []string{"--bip=10.42.7.1/24", "--mtu=1450", "--ip-masq=false"}},
		{"docker-opts", []string{"--bip=10.42.7.1/24", "--ip-masq=true", "--mtu=1450"}},
	} {
		t.Run(c.dir, func(t *testing.T) {
			run, text := relocate(t, filepath.Join(c.dir, "10-flannel.conf"))
			u := parseUnit(text)
			write(t, filepath.Join(run, "subnet.env"), subnetEnv)

			// Twice: the output of the first start must not change the second one.
			for range 2 {
				env := map[string]string{}
				load := func() {
					for _, file := range u.all("EnvironmentFile") {
						text, err := os.ReadFile(strings.TrimPrefix(file, "-"))
						if err != nil && !(file[0] == '-' && errors.Is(err, os.ErrNotExist)) {
							t.Fatal(err)
						}
						environ(string(text), env)
					}
				}
				for _, command := range u.all("ExecStartPre") {
					load()
					execute(t, command, env)
				}
				load()
				want := append([]string{"-H", "fd://", "--containerd=/run/containerd/containerd.sock"}, c.want...)
				if got := execute(t, u.one(t, "ExecStart"), env); !slices.Equal(got, want) {
					t.Errorf("got  %q\nwant %q", got, want)
				}
			}
		})
	}
}

// printArgs is a script that prints its arguments.
const printArgs = `for a; do echo "$a"; done`

// relocate returns a unit's text with other paths outside of this tree: a directory of the test for
// /run/flannel, a program that prints its arguments for dockerd, and so on.
func relocate(t *testing.T, name string) (run, text string) {
	t.Helper()
	run = t.TempDir()
	fake := filepath.Join(run, "fake")
	executable(t, fake, printArgs)
	script, err := filepath.Abs("../mk-docker-opts.sh")
	if err != nil {
		t.Fatal(err)
	}
	return run, strings.NewReplacer(
		"/run/flannel/", run+"/",
		"/usr/local/bin/mk-docker-opts.sh", script,
		"/usr/local/bin/flanneld", fake,
		"/usr/bin/env dockerd", fake,
	).Replace(read(t, name))
}

func TestUnitsVerify(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("systemd-analyze not found: apt-get install systemd")
	}
	verify := func(t *testing.T, unit string) {
		t.Helper()
		out, err := exec.Command("systemd-analyze", "verify", "--man=no", unit).CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Errorf("systemd-analyze verify: %v\n%s", err, out)
		}
	}
	t.Run("flanneld.service", func(t *testing.T) { verify(t, "flanneld.service") })
	for _, dir := range []string{"docker-bip", "docker-opts"} {
		t.Run(dir, func(t *testing.T) {
			units := t.TempDir()
			_, text := relocate(t, filepath.Join(dir, "10-flannel.conf"))
			write(t, filepath.Join(units, "docker.service"), "[Service]\nType=notify\nExecStart=/bin/false\n")
			write(t, filepath.Join(units, "flanneld.service"), read(t, "flanneld.service"))
			if err := os.Mkdir(filepath.Join(units, "docker.service.d"), 0o755); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(units, "docker.service.d/10-flannel.conf"), text)
			verify(t, filepath.Join(units, "docker.service"))
		})
	}
}

// The sample network configs, and the one in the cloud-config, must be valid.
func TestSampleConfigs(t *testing.T) {
	parse := func(t *testing.T, raw string) {
		if _, err := backend.ParseNetwork([]byte(raw)); err != nil {
			t.Error(err)
		}
	}
	samples, err := filepath.Glob("config/*.json")
	if err != nil || len(samples) == 0 {
		t.Fatal("no samples", err)
	}
	for _, sample := range samples {
		t.Run(filepath.Base(sample), func(t *testing.T) { parse(t, read(t, sample)) })
	}
	t.Run("cloud-config.yaml", func(t *testing.T) {
		put := regexp.MustCompile(`etcdctl mk (\S+) '(.*)'`).FindStringSubmatch(read(t, "cloud-config.yaml"))
		if put == nil {
			t.Fatal("nothing writes a network config")
		}
		if put[1] != "/coreos.com/network/config" {
			t.Errorf("key %s", put[1])
		}
		parse(t, put[2])
	})
}

// Only these keys of "flannel:" become lines of options.env. Others are ignored silently.
func TestCloudConfigKeys(t *testing.T) {
	known := []string{"etcd_endpoints", "etcd_cafile", "etcd_certfile", "etcd_keyfile", "etcd_prefix",
		"etcd_username", "etcd_password", "ip_masq", "subnet_file", "interface", "public_ip"}
	text := read(t, "cloud-config.yaml")
	if !strings.HasPrefix(text, "#cloud-config\n") {
		t.Error("the first line must be #cloud-config")
	}
	if strings.Contains(text, "\t") {
		t.Error("YAML knows no tabs")
	}
	_, after, ok := strings.Cut(text, "\n  flannel:\n")
	section, _, _ := strings.Cut(after, "\n\n")
	if !ok || section == "" {
		t.Fatal("no flannel section")
	}
	for line := range strings.Lines(section) {
		if key, _, _ := strings.Cut(strings.TrimSpace(line), ":"); !slices.Contains(known, key) {
			t.Errorf("unknown key %q", key)
		}
	}
}

// Tests of the parsers above.
func TestArgv(t *testing.T) {
	env := map[string]string{"A": "x  'y z'", "E": ""}
	got := argv(`/bin/sh -c 'a "$$0" $${B}' $A "$A" ${A} p${A}q $E $U ${E} k='v w'`, env)
	want := []string{"/bin/sh", "-c", `a "$0" ${B}`, "x", "y z", "x", "y z", "x  'y z'", "px  'y z'q", "", "k=v w"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}
