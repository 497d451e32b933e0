// Package dist_test checks the files that are shipped with the daemon: mk-docker-opts.sh, the
// systemd units and the sample configs.
package dist_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const subnetEnv = `FLANNEL_NETWORK=10.42.0.0/16
FLANNEL_SUBNET=10.42.7.1/24
FLANNEL_MTU=1450
FLANNEL_IPMASQ=false
`

// bip, masq and mtu are the lines for subnetEnv, combined is the value with all options.
const (
	bip      = "DOCKER_OPT_BIP=\"--bip=10.42.7.1/24\"\n"
	masq     = "DOCKER_OPT_IPMASQ=\"--ip-masq=true\"\n"
	mtu      = "DOCKER_OPT_MTU=\"--mtu=1450\"\n"
	nothing  = "FLANNEL_NETWORK=10.42.0.0/16\n" // a file without options for docker
	combined = " --bip=10.42.7.1/24 --ip-masq=true --mtu=1450"
	both     = bip + masq + mtu + "DOCKER_OPTS=\"" + combined + "\"\n"
)

// run is one run of the script in its own directory.
type run struct {
	input  string   // content of in.env; default: subnetEnv; "-" for no such file
	before string   // content of out.env before the run; "" for no such file
	env    []string // beside PATH
	args   []string // default: -f in.env -d out.env
}

type result struct {
	output string // content of out.env; "-" for no such file
	stderr string // of an expected result: a part of it
	code   int
}

// do runs the script with one shell and returns the result.
func (r run) do(t *testing.T, shell string) result {
	t.Helper()
	script, err := filepath.Abs("../mk-docker-opts.sh")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if r.input != "-" {
		write(t, filepath.Join(dir, "in.env"), r.input)
	}
	if r.before != "" {
		write(t, filepath.Join(dir, "out.env"), r.before)
	}

	cmd := exec.Command(shell, append([]string{script}, r.args...)...)
	cmd.Dir = dir
	// The routes are those of the test's own "ip".
	cmd.Env = append([]string{"PATH=" + path(t, dir)}, r.env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}

	if _, err := os.Stat(filepath.Join(dir, "pwned")); err == nil {
		t.Error("the script executed its input")
	}
	output, err := os.ReadFile(filepath.Join(dir, "out.env"))
	if os.IsNotExist(err) {
		output = []byte("-")
	} else if err != nil {
		t.Fatal(err)
	}
	return result{string(output), stderr.String(), cmd.ProcessState.ExitCode()}
}

// path creates a directory for PATH with the commands that the script may use, touch to detect that
// input is executed, and an "ip" that prints $ROUTES.
func path(t *testing.T, dir string) string {
	t.Helper()
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"env", "sed", "sort", "cat", "touch"} {
		target, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	executable(t, filepath.Join(bin, "ip"), "printf '%s' \"$ROUTES\"")
	return bin
}

func write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// executable creates a shell script.
func executable(t *testing.T, name, script string) {
	t.Helper()
	write(t, name, "#!/bin/sh\n"+script+"\n")
	if err := os.Chmod(name, 0o755); err != nil {
		t.Fatal(err)
	}
}

// with returns arguments for in.env and out.env, and more.
func with(more ...string) []string { return append([]string{"-f", "in.env", "-d", "out.env"}, more...) }

// expect runs the script with every supported shell.
func (r run) expect(t *testing.T, want result) {
	t.Helper()
	if r.input == "" {
		r.input = subnetEnv
	}
	if r.args == nil {
		r.args = with()
	}
	shells(t, func(t *testing.T, shell string) {
		got := r.do(t, shell)
		if got.code != want.code || got.output != want.output || !strings.Contains(got.stderr, want.stderr) || want.stderr == "" && got.stderr != "" {
			t.Errorf("exit %d, stderr %q, output\n%s\nwant exit %d, stderr %q, output\n%s", got.code, got.stderr, got.output, want.code, want.stderr, want.output)
		}
	})
}

// shells runs a test with every supported shell.
func shells(t *testing.T, test func(t *testing.T, shell string)) {
	for _, shell := range []string{"dash", "bash"} {
		t.Run(shell, func(t *testing.T) {
			path, err := exec.LookPath(shell)
			if err != nil {
				t.Skipf("%s not found: apt-get install %s", shell, shell)
			}
			test(t, path)
		})
	}
}

func TestMkDockerOpts(t *testing.T) {
	// Nothing in the file is executed, whether the rest of it is valid or not.
	const hostile = "touch pwned\n`touch pwned`\n$(touch pwned)\nPATH=/nonexistent\nDOCKER_OPT_X=$(touch pwned)\n" +
		"FLANNEL_X=$(touch pwned)\nFLANNEL_SUBNET_=;touch pwned\nDOCKER_OPTS=--privileged\nIFS=/\noutput=pwned\nkey=pwned\n"
	for _, c := range []struct {
		name string
		run
		want string
	}{
		{"both by default", run{}, both},
		{"both asked for", run{args: with("-i", "-c")}, both},
		{"hostile input", run{input: hostile + subnetEnv + hostile}, both},
		{"individual", run{args: with("-i")}, bip + masq + mtu},
		{"combined", run{args: with("-c")}, "DOCKER_OPTS=\"" + combined + "\"\n"},
		{"no masquerading", run{args: with("-m")}, bip + mtu + "DOCKER_OPTS=\" --bip=10.42.7.1/24 --mtu=1450\"\n"},
		{"key", run{args: with("-c", "-k", "DOCKER_NETWORK_OPTIONS")}, "DOCKER_NETWORK_OPTIONS=\"" + combined + "\"\n"},
		{"key of both", run{args: with("-k", "_x9")}, bip + masq + mtu + "_x9=\"" + combined + "\"\n"},
		{"options in one word", run{args: []string{"-fin.env", "-dout.env", "-imkX"}}, bip + mtu},
		{"overwrites", run{before: strings.Repeat("old\n", 100), args: with("-i")}, bip + masq + mtu},

		{"flannel masquerades", run{input: "FLANNEL_IPMASQ=true\n", args: with("-i")}, "DOCKER_OPT_IPMASQ=\"--ip-masq=false\"\n"},
		{"no masquerading, whatever it is", run{input: "FLANNEL_IPMASQ=maybe\n", args: with("-i", "-m")}, ""},
		{"dual stack", run{
			input: "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.7.1/24\nFLANNEL_IPV6_NETWORK=fd42::/48\n" +
				"FLANNEL_IPV6_SUBNET=fd42:0:0:7::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n",
			args: with("-i")}, bip + masq + mtu},

		{"nothing for docker", run{input: nothing}, "DOCKER_OPTS=\"\"\n"},
		{"nothing for docker, individual", run{input: nothing, args: with("-i")}, ""},
		{"only some", run{input: "FLANNEL_MTU=1450\n"}, mtu + "DOCKER_OPTS=\" --mtu=1450\"\n"},

		// All forms in which a shell would read the file.
		{"no newline at the end", run{input: "FLANNEL_MTU=1450", args: with("-i")}, mtu},
		{"double quotes", run{input: "FLANNEL_MTU=\"1450\"\n", args: with("-i")}, mtu},
		{"single quotes", run{input: "FLANNEL_MTU='1450'\n", args: with("-i")}, mtu},
		{"CR LF", run{input: "FLANNEL_MTU=1450\r\n", args: with("-i")}, mtu},
		{"comments and blanks", run{input: "# FLANNEL_MTU=1\n\n \tFLANNEL_MTU=1450 # c\n", args: with("-i")}, mtu},
		{"export", run{input: "export FLANNEL_MTU=1450\n", args: with("-i")}, mtu},
		{"last one wins", run{input: "FLANNEL_MTU=1400\nFLANNEL_MTU=1450\n", args: with("-i")}, mtu},
		{"empty value", run{input: "FLANNEL_SUBNET=\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=\n", args: with("-i")}, mtu},

		// Variables that are set before are included.
		{"preset combined", run{env: []string{"DOCKER_OPTS=-H x"}, args: with("-c")}, "DOCKER_OPTS=\"-H x " + combined + "\"\n"},
		{"preset combined, nothing to add", run{input: nothing, env: []string{"DOCKER_OPTS=-H x"}}, "DOCKER_OPTS=\"-H x\"\n"},
		{"preset combined, other key", run{env: []string{"DOCKER_OPTS=-H x"}, args: with("-c", "-k", "K")}, "K=\"" + combined + "\"\n"},
		{"preset option in its place", run{env: []string{"DOCKER_OPT_LOG=--log", "DOCKER_OPT_A=-a"}},
			"DOCKER_OPT_A=\"-a\"\n" + bip + masq + "DOCKER_OPT_LOG=\"--log\"\n" + mtu +
				"DOCKER_OPTS=\" -a --bip=10.42.7.1/24 --ip-masq=true --log --mtu=1450\"\n"},
		{"preset option is ours", run{env: []string{"DOCKER_OPT_BIP=--bip=1.2.3.4/5"}, args: with("-i")}, bip + masq + mtu},
		{"preset option we know nothing of", run{input: nothing, env: []string{"DOCKER_OPT_BIP=--bip=1.2.3.4/5"}, args: with("-i")},
			"DOCKER_OPT_BIP=\"--bip=1.2.3.4/5\"\n"},
		{"preset empty option", run{input: nothing, env: []string{"DOCKER_OPT_A="}}, "DOCKER_OPT_A=\"\"\nDOCKER_OPTS=\"\"\n"},
		{"preset flannel variable", run{input: nothing, env: []string{"FLANNEL_MTU=1450"}, args: with("-i")}, mtu},
		{"preset flannel variable loses", run{input: "FLANNEL_MTU=1450\n", env: []string{"FLANNEL_MTU=1"}, args: with("-i")}, mtu},
		{"preset blanks", run{input: nothing, env: []string{"DOCKER_OPT_A=-a  *  b\tc"}},
			"DOCKER_OPT_A=\"-a  *  b\tc\"\nDOCKER_OPTS=\" -a  *  b\tc\"\n"},
		{"preset quotes", run{input: nothing, env: []string{`DOCKER_OPT_A=--tag="a 'b'" \n $HOME ` + "`id`"}},
			`DOCKER_OPT_A="--tag=\"a 'b'\" \\n \$HOME ` + "\\`id\\`\"\n" +
				`DOCKER_OPTS=" --tag=\"a 'b'\" \\n \$HOME ` + "\\`id\\`\"\n"},
		{"preset lines", run{input: nothing, env: []string{"DOCKER_OPT_A=a\nDOCKER_OPT_B=b\nc"}, args: with("-i")},
			"DOCKER_OPT_A=\"a\nDOCKER_OPT_B=b\nc\"\n"},
		{"similar names", run{input: nothing, env: []string{"DOCKER_OPTION=a", "XDOCKER_OPT_A=b", "DOCKER_OPT_A-B=c"}}, "DOCKER_OPTS=\"\"\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.expect(t, result{output: c.want})
		})
	}
}

// A shell must read the same values from the output.
func TestMkDockerOptsRoundTrip(t *testing.T) {
	value := "--a \"b\" 'c' $d ${e} `f` $(g) \\ \\\\ * ? ~ # ! ; & | < > ä\nnext"
	shells(t, func(t *testing.T, shell string) {
		got := run{input: nothing, env: []string{"DOCKER_OPT_A=" + value}, args: with()}.do(t, shell)
		cmd := exec.Command(shell, "-c", got.output+`printf '%s|%s' "$DOCKER_OPT_A" "$DOCKER_OPTS"`)
		cmd.Env = []string{"PATH=/nonexistent"}
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		if want := value + "| " + value; string(out) != want {
			t.Errorf("got  %q\nwant %q", out, want)
		}
	})
}

func TestMkDockerOptsErrors(t *testing.T) {
	const usage = "Usage: "
	for _, c := range []struct {
		name string
		run
		code   int
		stderr string // part of standard error
	}{
		{"help", run{args: []string{"-h"}}, 1, usage},
		{"question mark", run{args: []string{"-?"}}, 1, usage},
		{"unknown option", run{args: []string{"-z"}}, 1, usage},
		{"missing argument", run{args: []string{"-f"}}, 1, usage},
		{"missing file", run{input: "-"}, 1, "in.env does not exist"},
		{"missing file, individual", run{input: "-", args: with("-i")}, 1, "in.env does not exist"},
		{"missing file, preset", run{input: "-", env: []string{"FLANNEL_MTU=1450", "DOCKER_OPTS=-H x"}}, 1, "in.env does not exist"},
		{"missing directory", run{args: []string{"-f", "nowhere/in.env", "-d", "out.env"}}, 1, "nowhere/in.env does not exist"},
		{"input is a directory", run{args: []string{"-f", ".", "-d", "out.env"}}, 1, ". is a directory"},
		{"bad IPMASQ", run{input: "FLANNEL_IPMASQ=maybe\n"}, 1, "Invalid value of FLANNEL_IPMASQ: maybe\n"},
		{"bad key", run{args: with("-k", "X;touch pwned")}, 1, "must be the name of a variable"},
		{"empty key", run{args: with("-k", "")}, 1, "must be the name of a variable"},
		{"second option smuggled", run{input: "FLANNEL_MTU='1450 --privileged'\n"}, 1, "Invalid value of FLANNEL_MTU: 1450 --privileged\n"},
		{"quote smuggled", run{input: "FLANNEL_SUBNET='1\"2'\n"}, 1, "Invalid value of FLANNEL_SUBNET: 1\"2\n"},
		{"command after", run{input: "FLANNEL_MTU=1450;touch${IFS}pwned\n"}, 1, "Invalid value of FLANNEL_MTU: "},
		{"command substitution", run{input: "FLANNEL_MTU=$(touch${IFS}pwned)\n"}, 1, "Invalid value of FLANNEL_MTU: $(touch"},
		{"backticks", run{input: "FLANNEL_SUBNET=\"`touch pwned`\"\n"}, 1, "Invalid value of FLANNEL_SUBNET: `touch pwned`\n"},
		{"backslashes", run{input: "FLANNEL_MTU='a\\nb'\n"}, 1, "Invalid value of FLANNEL_MTU: a"},
		{"output cannot be written", run{args: []string{"-f", "in.env", "-d", "nowhere/out.env"}}, 2, "nowhere/out.env"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.before = "precious\n" // unchanged after an error
			c.expect(t, result{c.before, c.stderr, c.code})
		})
	}
}

// Some users run it with -d /run/flannel/subnet.env. The second run then reads the output of the
// first one.
func TestMkDockerOptsOwnOutput(t *testing.T) {
	for before, stderr := range map[string]string{subnetEnv: "", both: "no FLANNEL_ variable in out.env"} {
		run{input: "-", before: before, args: []string{"-f", "out.env", "-d", "./out.env"}}.expect(t, result{output: both, stderr: stderr})
	}
	run{input: both}.expect(t, result{output: "DOCKER_OPTS=\"\"\n", stderr: "no FLANNEL_ variable in in.env"})
}

func TestMkDockerOptsArguments(t *testing.T) {
	run{args: append([]string{"-i"}, with("x", "-c")...)}.expect(t, result{output: bip + masq + mtu, stderr: "ignored arguments: x -c"})
}

// A route of others to the host's own subnet is only a warning.
func TestMkDockerOptsRoute(t *testing.T) {
	const warning = "Your routing table already contains the subnet: "
	for _, c := range []struct {
		name, subnet, routes string
		warn                 bool
	}{
		{"own bridge", "10.42.7.1/24", "10.42.7.0/24 dev docker0 proto kernel scope link src 10.42.7.1\n", false},
		{"via", "10.42.7.1/24", "10.42.7.0/24 via 10.0.0.2 dev eth0\n", true},
		{"onlink", "10.42.7.1/24", "10.42.7.0/24 proto 80 via 10.0.0.2 dev eth0 onlink\n", true},
		{"last octet", "10.42.7.65/26", "10.42.7.64/26 via 10.0.0.2 dev eth0\n", true},
		{"longer address", "10.42.7.1/24", "110.42.7.0/24 via 10.0.0.2 dev eth0\n", false},
		{"dots are no wildcards", "10.42.7.1/24", "10.4207.0/24 via 10.0.0.2\n", false},
		{"other length", "10.42.7.1/24", "10.42.7.0/25 via 10.0.0.2 dev eth0\n", false},
		{"default", "10.42.7.1/24", "default via 10.42.7.0 dev eth0\n", false},
		{"not an address", "x", "x via 10.0.0.2 dev eth0\n", false},
		{"octal", "10.42.7.09/24", "10.42.7.8/24 via 10.0.0.2 dev eth0\n", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := result{output: "DOCKER_OPT_BIP=\"--bip=" + c.subnet + "\"\n"}
			if c.warn {
				want.stderr = warning + c.routes
			}
			run{input: "FLANNEL_SUBNET=" + c.subnet + "\n", env: []string{"ROUTES=" + c.routes}, args: with("-i")}.expect(t, want)
		})
	}
}
