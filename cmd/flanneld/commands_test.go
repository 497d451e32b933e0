package main

import (
	"bytes"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// said runs a command line, and returns what it prints and its exit code.
func said(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), func() {}, args, nil, &out, &errs)
	return out.String(), errs.String(), code
}

// TestCommandsBelowOthersHaveHelp: as each command does, and the one above lists them.
func TestCommandsBelowOthersHaveHelp(t *testing.T) {
	for _, parent := range []string{"config", "leases"} {
		above, _, _ := said(t, parent, "--help")
		found := 0
		for _, c := range newRoot(&invocation{ctx: t.Context()}).Commands() {
			for _, sub := range c.Commands() {
				if c.Name() != parent {
					continue
				}
				found++
				name := parent + " " + sub.Name()
				first, errs, code := said(t, parent, sub.Name(), "--help")
				if code != 0 || errs != "" || !strings.HasPrefix(first, "flanneld "+name+" ") || !strings.Contains(first, "\nUsage: flanneld "+name) ||
					!strings.Contains(first, "Exit code: 0") || !strings.Contains(first, "--etcd-endpoints") || !strings.Contains(above, "\n  "+sub.Name()+" ") {
					t.Errorf("%s --help: exit code %d, %s%s", name, code, first, errs)
				}
				if text, _, _ := said(t, "help", parent, sub.Name()); text != first {
					t.Errorf("help %s: %s", name, text)
				}
				for line := range strings.Lines(first) {
					if len([]rune(line)) > 103 {
						t.Errorf("%s --help: a line of %d characters: %s", name, len(line), line)
					}
				}
				if _, errs, code := said(t, parent, sub.Name(), "-no-such-flag"); code != 2 || !strings.HasPrefix(errs, "flanneld "+name+": unknown flag -no-such-flag\n") {
					t.Errorf("unknown flag of %s: exit code %d, %q", name, code, errs)
				}
			}
		}
		if found != 3 {
			t.Errorf("%s: %d commands", parent, found)
		}
	}
}

// TestBadArgumentsOfOperators: they are refused before etcd is asked.
func TestBadArgumentsOfOperators(t *testing.T) {
	refused := map[string]bool{"config set -etcd-api=v9 /dev/null": true, "config set /nonexistent/x": true, "config check /": true}
	for args, want := range map[string]string{
		"config":                                         "must be followed by get, set or check",
		"config put x":                                   `unknown command "put": must be get, set or check`,
		"config chekc":                                   "; did you mean check?",
		"config get x":                                   `unexpected argument "x"`,
		"config set a b":                                 `unexpected argument "b"`,
		"config set /nonexistent/x":                      "flanneld config set: open /nonexistent/x: no such file or directory\n",
		"config check /":                                 "flanneld config check: read /: is a directory\n",
		"config set -etcd-api=v9 /dev/null":              "must be a JSON object, and is empty",
		"config check -yes":                              "unknown flag -yes",
		"leases release":                                 "SUBNET: must be an IPv4 subnet",
		"leases release 10.42.9.1/24":                    `SUBNET: "10.42.9.1/24": must be an IPv4 subnet such as 10.42.9.0/24`,
		"leases release fd00::/64":                       `must be an IPv4 subnet`,
		"leases reserve":                                 "SUBNET: must be an IPv4 subnet",
		"leases reserve 10.42.9.0/24 x":                  `unexpected argument "x"`,
		"leases reserve 10.42.9.0/24 -public-ip=host1":   `--public-ip: "host1": must be an IPv4 address such as`,
		"leases reserve 10.42.9.0/24 -public-ip 0.0.0.0": `--public-ip: "0.0.0.0"`,
		"leases list -etcd-api=v9":                       `--etcd-api: "v9": must be auto, v2 or v3`,
		"leases list -etcd-endpoints=,":                  `--etcd-endpoints: ",": must be`,
	} {
		if out, errs, code := said(t, strings.Fields(args)...); (code == 2) == refused[args] || refused[args] && code != operatorRefused || out != "" || !strings.Contains(errs, want) {
			t.Errorf("%q: exit code %d, %q, %q, want %q", args, code, out, errs, want)
		}
	}
}

// TestCommandsHaveHelp: each subcommand has one, with one dash or two, that names the command, its
// flags and its exit codes; the daemon's help lists them all.
func TestCommandsHaveHelp(t *testing.T) {
	daemon, _, code := said(t, "--help")
	if text, _, again := said(t, "help"); code != 0 || again != 0 || text != daemon {
		t.Errorf("help: exit codes %d, %d, %s", code, again, text)
	}
	for _, c := range subcommands {
		if !strings.Contains(daemon, "\n  "+c.name+" ") {
			t.Errorf("the help does not list %s", c.name)
		}
		first, _, _ := said(t, c.name, "--help")
		for _, args := range [][]string{{c.name, "-help"}, {c.name, "-h"}, {c.name, "--h"}, {"help", c.name}} {
			if text, errs, code := said(t, args...); code != 0 || errs != "" || text != first {
				t.Errorf("%q: exit code %d, %s%s", args, code, text, errs)
			}
		}
		if !strings.HasPrefix(first, "flanneld "+c.name+" ") || !strings.Contains(first, "\nUsage: flanneld "+c.name) {
			t.Errorf("%s --help:\n%s", c.name, first)
		}
		_, errs, code := said(t, c.name, "-no-such-flag")
		if want := "flanneld " + c.name + ": unknown flag -no-such-flag\nRun 'flanneld " + c.name + " --help' for the flags there are.\n"; code != badUsage(c.name) || errs != want {
			t.Errorf("unknown flag of %s: exit code %d, %q, want %q", c.name, code, errs, want)
		}
		for line := range strings.Lines(first) {
			if len([]rune(line)) > 103 {
				t.Errorf("%s --help: a line of %d characters: %s", c.name, len(line), line)
			}
		}
	}
}

// badUsage is the exit code of a command with a bad command line.
func badUsage(command string) int {
	if command == "plan" {
		return planUnknown
	}
	return 2
}

func TestUnknownCommands(t *testing.T) {
	names := "status, doctor, trace, plan, config, leases, cleanup, completion or man"
	for _, args := range [][]string{{"statsu"}, {"Status"}, {"help", "statsu"}, {"/usr/bin/flanneld", "run"}, {"stat", "us"}} {
		word := args[len(args)-1]
		if args[0] == "stat" {
			word = "stat"
		}
		out, errs, code := said(t, args...)
		if want := "flanneld: unknown command \"" + word + "\": must be " + names + ", or none for the daemon"; code != 2 || out != "" || !strings.HasPrefix(errs, want) {
			t.Errorf("%q: exit code %d, %q, want %q", args, code, errs, want)
		}
	}
	for line, want := range map[string]string{
		"statsu": "; did you mean status?", "docter --json": "; did you mean doctor?", "version": "; did you mean --version?", "x": "", "containers": "",
		"--etcd-endpoint=x": "; did you mean --etcd-endpoints?", "status -jsn": "; did you mean --json?", "doctor --bundel x": "; did you mean --bundle?", "-no-such-flag": "",
		"--ip-masq false": "--flag=false", "status --json true": "--flag=true", "man now": "must be a flag",
	} {
		_, errs, code := said(t, strings.Fields(line)...)
		first, _, _ := strings.Cut(errs, "\n")
		if code != 2 || !strings.HasSuffix(first, want) || want == "" && strings.Contains(first, "did you mean") {
			t.Errorf("%s: exit code %d, %s", line, code, errs)
		}
	}
	for _, args := range [][]string{{"status", "now"}, {"status", "-json", "now"}, {"man", "now"}, {"doctor", "now"}} {
		if _, errs, code := said(t, args...); code != 2 || !strings.Contains(errs, `unexpected argument "now": must be a flag`) {
			t.Errorf("%q: exit code %d, %q", args, code, errs)
		}
	}
	for _, args := range [][]string{{"status", "-subnet-file="}, {"cleanup", "-subnet-file", ""}} {
		if _, errs, code := said(t, args...); code != 2 || !strings.Contains(errs, `--subnet-file: "": must be a path`) {
			t.Errorf("%q: exit code %d, %q", args, code, errs)
		}
	}
	if _, errs, code := said(t, "status", "-json=maybe"); code != 2 || !strings.Contains(errs, `--json: "maybe": must be true or false`) {
		t.Errorf("exit code %d, %q", code, errs)
	}
	if _, errs, code := said(t, "completion", "tcsh"); code != 2 || !strings.Contains(errs, `shell: "tcsh": must be bash, zsh or fish`) {
		t.Errorf("exit code %d, %q", code, errs)
	}
}

// TestStatusThatCannotBeAsked: it is an error, and not a verdict about the daemon.
func TestStatusThatCannotBeAsked(t *testing.T) {
	file := filepath.Join(t.TempDir(), "subnet.env")
	l, err := net.Listen("unix", file+".sock")
	if err != nil {
		t.Fatal(err)
	}
	busy := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
	})}
	go busy.Serve(l)
	defer busy.Close()
	for _, args := range [][]string{{"status"}, {"status", "-json"}} {
		out, errs, code := said(t, append(args, "-subnet-file="+file)...)
		if want := "flanneld status: ask flanneld on " + file + ".sock: 503 Service Unavailable\n"; code != 2 || out != "" || errs != want {
			t.Errorf("%q: exit code %d, %q, %q", args, code, out, errs)
		}
	}
	if out, errs, code := said(t, "status", "-json", "-subnet-file="+file+".other"); code != 2 || !strings.Contains(out, `"verdict": "down"`) || errs != "" {
		t.Errorf("without a daemon: exit code %d, %q, %q", code, out, errs)
	}
}

// TestCompletions: what the shells ask for, with one dash and with two.
func TestCompletions(t *testing.T) {
	for words, want := range map[string]string{
		"st": "status", "c": "cleanup completion config", "config ": "check get set", "config se": "set", "config set -y": "-yes", "leases release --y": "--yes", "leases reserve -p": "-public-ip", "leases list -etcd-api v": "v2 v3", "-etcd-pr": "-etcd-prefix", "--etcd-pr": "--etcd-prefix", "status -j": "-json", "trace -proto ": "icmp tcp udp", "trace 10.42.7.2 -j": "-json", "trace ": "", "status --w": "--watch",
		"completion ": "bash zsh fish", "completion b": "bash", "cleanup -d": "-dry-run", "man x": "", "status -subnet-file /e": "", "no such": "",
		"-etcd-api ": "auto v2 v3", "doctor -etcd-api=v": "v2 v3", "-iface l": "lo", "-etcd-prefix ": "",
	} {
		before, last, found := strings.Cut(words, " ")
		args := []string{"__complete", before}
		if found {
			args = append(args, strings.Split(last, " ")...)
		}
		out, _, _ := said(t, args...)
		var got []string
		for line := range strings.Lines(out) {
			if name, _, _ := strings.Cut(strings.TrimSpace(line), "\t"); !strings.HasPrefix(name, ":") {
				got = append(got, name)
			}
		}
		if strings.Join(got, " ") != want || strings.Contains(out, "`") {
			t.Errorf("%q: %q, want %q", words, out, want)
		}
	}
	root := newRoot(&invocation{ctx: t.Context()})
	mustParse(t, nil, nil).flags.VisitAll(func(f *pflag.Flag) {
		if _, idle := f.Annotations[noEffect]; !idle && root.Flags().Lookup(f.Name) == nil {
			t.Errorf("-%s is not completed", f.Name)
		}
	})
}

// TestCompletionScripts: the shells accept them, and bash completes with its own, with or without
// the package bash-completion.
func TestCompletionScripts(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		script, errs, code := said(t, "completion", shell)
		if code != 0 || errs != "" || !strings.Contains(script, "flanneld") {
			t.Errorf("%s: exit code %d, %s", shell, code, errs)
		}
		if _, err := exec.LookPath(shell); err != nil {
			t.Logf("%s is not installed, its script is not tried", shell)
			continue
		}
		cmd := exec.Command(shell, "-n")
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v: %s", shell, err, out)
		}
	}
	script, _, _ := said(t, "completion", "bash")
	const try = `
flanneld() {
    case "$*" in
    "__complete status -js") printf '%s\n' '-json	print' :4 ;;
    "__complete -etcd-api=v") printf '%s\n' v2 v3 :4 ;;
    esac
}
try() {
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_TYPE=9 COMPREPLY=()
    __start_flanneld
    echo "${COMPREPLY[@]}"
}
try flanneld status -js
try flanneld -etcd-api = v
`
	out, err := exec.Command("bash", "--norc", "-c", script+try).Output() // compopt fails outside of a completion
	if err != nil || string(out) != "-json\nv2 v3\n" {
		t.Errorf("bash completes with %q, %v", out, err)
	}
}

func TestManIsTheManual(t *testing.T) {
	if out, errs, code := said(t, "man"); code != 0 || errs != "" || out != manual || !strings.HasPrefix(out, ".Dd ") {
		t.Errorf("exit code %d, %s", code, errs)
	}
}
