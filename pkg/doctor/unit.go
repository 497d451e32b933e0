package doctor

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// unitName is the systemd unit of the daemon.
const unitName = "flanneld.service"

// unitFile limits the length of a file of variables.
const unitFile = 64 << 10

// Unit returns the arguments and the environment with which systemd starts the daemon on this host.
func Unit(ctx context.Context) (Daemon, error) {
	ctx, cancel := context.WithTimeout(ctx, localLimit/2)
	defer cancel()
	show, err := output(ctx, "systemctl", "show", unitName, "--property=LoadState,ExecStart,Environment,EnvironmentFiles")
	if err != nil {
		return Daemon{}, err
	}
	return parseUnit(string(show), func(path string) string {
		b, _ := readStart(path, unitFile)
		return string(b)
	})
}

// parseUnit parses the properties of a unit. read returns the content of a file, empty if there is
// none.
func parseUnit(show string, read func(path string) string) (d Daemon, err error) {
	var command string
	var env []string
	loaded := false
	for line := range strings.Lines(show) {
		name, v, _ := strings.Cut(strings.TrimRight(line, "\n"), "=")
		switch name {
		case "LoadState":
			loaded = v == "loaded"
		case "ExecStart":
			_, after, _ := strings.Cut(v, "argv[]=")
			command, _, _ = strings.Cut(after, " ; ignore_errors=")
		case "Environment":
			env = append(env, split(v)...)
		case "EnvironmentFiles":
			path, _, _ := strings.Cut(v, " (")
			if filepath.IsAbs(path) {
				env = append(env, environment(read(path))...)
			}
		}
	}
	if !loaded {
		return d, fmt.Errorf("there is no %s", unitName)
	}
	values := map[string]string{}
	for _, kv := range env {
		if k, v, ok := strings.Cut(kv, "="); ok {
			values[k] = v
		}
	}
	// The names in Fedora's and CentOS' sysconfig, which the unit maps to flags.
	for _, m := range [][2]string{
		{"FLANNELD_ETCD_ENDPOINTS", "FLANNEL_ETCD_ENDPOINTS"}, {"FLANNELD_ETCD_ENDPOINTS", "FLANNEL_ETCD"},
		{"FLANNELD_ETCD_PREFIX", "FLANNEL_ETCD_PREFIX"}, {"FLANNELD_ETCD_PREFIX", "FLANNEL_ETCD_KEY"},
	} {
		if values[m[0]] == "" {
			values[m[0]] = values[m[1]]
		}
	}
	for k, v := range values {
		d.Env = append(d.Env, k+"="+v)
	}
	slices.Sort(d.Env)
	argv := strings.Fields(command)
	at := -1
	for i, w := range argv {
		if filepath.Base(strings.Trim(w, `"'`)) == "flanneld" {
			at = i
		}
	}
	if at < 0 {
		return d, errors.New("the unit starts no program called flanneld")
	}
	for _, w := range argv[at+1:] {
		d.Args = append(d.Args, expand(w, values)...)
	}
	return d, nil
}

// variable matches a variable in a word.
var variable = regexp.MustCompile(`\$\{\w+\}`)

// expand replaces variables in a word of a command line as systemd.service(5) does: $NAME as a word
// becomes words, ${NAME} is replaced in place.
func expand(w string, values map[string]string) []string {
	if name, ok := strings.CutPrefix(w, "$"); ok && !strings.HasPrefix(name, "{") {
		return split(values[name])
	}
	return split(variable.ReplaceAllStringFunc(w, func(found string) string { return values[found[2:len(found)-1]] }))
}

// environment returns the variables in a file, in the form of systemd.exec(5).
func environment(text string) (env []string) {
	for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", "")) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		if k, v, ok := strings.Cut(line, "="); ok {
			env = append(env, strings.TrimSpace(k)+"="+strings.Trim(strings.TrimSpace(v), `"'`))
		}
	}
	return env
}

// split splits a text into words, with quotes as in a shell.
func split(text string) (all []string) {
	var word strings.Builder
	quote, inWord, escaped := byte(0), false, false
	for i := range len(text) {
		c := text[i]
		switch {
		case escaped:
			word.WriteByte(c)
			escaped = false
		case c == '\\' && quote != '\'':
			escaped, inWord = true, true
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote, inWord = c, true
		case quote == 0 && (c == ' ' || c == '\t' || c == '\n'):
			if inWord {
				all = append(all, word.String())
			}
			word.Reset()
			inWord = false
		default:
			word.WriteByte(c)
			inWord = true
		}
	}
	if inWord {
		all = append(all, word.String())
	}
	return all
}
