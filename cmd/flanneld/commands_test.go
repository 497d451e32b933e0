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
		if want := "flanneld " + c.name + ": unknown flag -no-such-flag\nRun 'flanneld " + c.name + " --help' for the flags there are.\n"; code != 2 || errs != want {
			t.Errorf("unknown flag of %s: exit code %d, %q, want %q", c.name, code, errs, want)
		}
		for line := range strings.Lines(first) {
			if len([]rune(line)) > 103 {
				t.Errorf("%s --help: a line of %d characters: %s", c.name, len(line), line)
			}
		}
	}
}

func TestUnknownCommands(t *testing.T) {
	names := "status, doctor, cleanup, completion or man"
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
		"st": "status", "c": "cleanup completion", "-etcd-pr": "-etcd-prefix", "--etcd-pr": "--etcd-prefix", "status -j": "-json", "status --w": "--watch",
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
