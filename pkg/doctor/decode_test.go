package doctor

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
)

// unpack returns the files of a bundle.
func unpack(t *testing.T, path string) map[string]string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	zip, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for tape := tar.NewReader(zip); ; {
		head, err := tape.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(tape)
		if err != nil {
			t.Fatal(err)
		}
		files[strings.TrimPrefix(head.Name, "flanneld-doctor/")] = string(content)
	}
}

const unitShow = `LoadState=loaded
ExecStart={ path=/bin/sh ; argv[]=/bin/sh -c \n export A="$${B}"; exec "$$0" "$$@" /usr/local/bin/flanneld $FLANNEL_OPTIONS -v=${LEVEL} ; ignore_errors=no ; start_time=[n/a] }
Environment=FLANNEL_OPTIONS= LEVEL=1 "WITH=a b"
EnvironmentFiles=/etc/sysconfig/flanneld (ignore_errors=yes)
EnvironmentFiles=/etc/default/flanneld (ignore_errors=yes)
`

// TestUnit: the arguments and the environment are those that systemd starts the daemon with.
func TestUnit(t *testing.T) {
	files := map[string]string{
		"/etc/sysconfig/flanneld": "# comment\nFLANNEL_ETCD_ENDPOINTS=\"http://192.0.2.1:2379\"\nFLANNEL_ETCD_PREFIX='/atomic.io/network'\n",
		"/etc/default/flanneld":   "FLANNEL_OPTIONS=\"-iface=eth1 -etcd-cafile='/a b'\"\nFLANNELD_ETCD_PREFIX=/net\n",
	}
	d, err := parseUnit(unitShow, func(path string) string { return files[path] })
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"-iface=eth1", "-etcd-cafile=/a b", "-v=1"}; !slices.Equal(d.Args, want) {
		t.Errorf("arguments %q, want %q", d.Args, want)
	}
	for _, want := range []string{"FLANNELD_ETCD_ENDPOINTS=http://192.0.2.1:2379", "FLANNELD_ETCD_PREFIX=/net", "WITH=a b"} {
		if !slices.Contains(d.Env, want) {
			t.Errorf("environment %q, want %q in it", d.Env, want)
		}
	}
	for _, bad := range []string{"", "LoadState=not-found\n", "LoadState=loaded\nExecStart={ path=/bin/true ; argv[]=/bin/true ; ignore_errors=no }\n"} {
		if _, err := parseUnit(bad, func(string) string { return "" }); err == nil {
			t.Errorf("%q is no error", bad)
		}
	}
}

func FuzzUnit(f *testing.F) {
	f.Add(unitShow, "A=1\n")
	f.Add("LoadState=loaded\nExecStart={ argv[]=flanneld ${A} ${B} ; ignore_errors=", "A=${B}\nB=${A}\n")
	f.Fuzz(func(t *testing.T, show, file string) {
		d, err := parseUnit(show, func(string) string { return file })
		if err == nil && slices.ContainsFunc(d.Env, func(kv string) bool { return !strings.Contains(kv, "=") }) {
			t.Errorf("%q", d.Env)
		}
		d.setting("iface", "")
	})
}

// TestSettingOfDaemon: the last value of the arguments counts, then the environment, then the
// default.
func TestSettingOfDaemon(t *testing.T) {
	for _, c := range []struct{ args, env, want string }{
		{"", "", "/run/flannel/subnet.env"},
		{"-subnet-file=/a", "", "/a"},
		{"--subnet-file /a -v 1", "FLANNELD_SUBNET_FILE=/b", "/a"},
		{"-subnet-file=/a -subnet-file=/c", "", "/c"},
		{"-v=1", "PATH=/bin FLANNELD_SUBNET_FILE=/b", "/b"},
		{"-v=1 subnet-file=/a", "FLANNELD_SUBNET_FILE=", "/run/flannel/subnet.env"},
	} {
		d := Daemon{Args: strings.Fields(c.args), Env: strings.Fields(c.env)}
		if got := d.SubnetFile(); got != c.want {
			t.Errorf("%q with %q: %s, want %s", c.args, c.env, got, c.want)
		}
	}
	for stat, want := range map[string]byte{"7 (flanneld) T 1": 'T', "7 (a) b) S 1 3": 'S', "": 0, "7 (x)": 0, "7 (x) S": 0} {
		if got, parent := processState([]byte(stat)); got != want || parent != min(1, int(want)) {
			t.Errorf("%q: %q, %d, want %q", stat, got, parent, want)
		}
	}
}

// FuzzEchoAnswer: an answer counts only for the target that it is from, with its identifier, and of
// the size that was asked for.
func FuzzEchoAnswer(f *testing.F) {
	targets := []target{{addr: addr("192.0.2.8")}, {addr: addr("10.42.8.0"), device: "flannel.1", size: 1450}}
	for seq, size := range []int{0, 1422} {
		m, err := (&icmp.Message{Type: ipv4.ICMPTypeEchoReply, Body: &icmp.Echo{ID: 7, Seq: seq, Data: make([]byte, size)}}).Marshal(nil)
		if err != nil {
			f.Fatal(err)
		}
		ip := &net.IPAddr{IP: targets[seq].addr.AsSlice()}
		if got, ok := parseAnswer(m, ip, 7, targets); !ok || got != targets[seq] {
			f.Errorf("answer %d: %v, %v", seq, got, ok)
		}
		if _, ok := parseAnswer(m, ip, 8, targets); ok {
			f.Errorf("answer %d: counts for another identifier", seq)
		}
		if _, ok := parseAnswer(m, &net.IPAddr{IP: net.IPv4(192, 0, 2, 99)}, 7, targets); ok {
			f.Errorf("answer %d: counts from another host", seq)
		}
		if _, ok := parseAnswer(m[:len(m)-size], ip, 7, targets); ok && size > 0 {
			f.Errorf("answer %d: counts although it is short", seq)
		}
		f.Add(m)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		parseAnswer(b, &net.IPAddr{IP: net.IPv4(192, 0, 2, 8)}, 7, targets)
		parseAnswer(b, nil, 7, targets)
	})
}

// TestOutput: a command is bounded in time and in output, its children end with it, and the reason
// of a failure is its own.
func TestOutput(t *testing.T) {
	dir := t.TempDir()
	script := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct {
		name, text, out, err string
	}{
		{"fine", "echo yes", "yes\n", ""},
		{"fails", "echo partly; echo 'why it failed' >&2; exit 3", "partly\n", "exit status 3: why it failed"},
		{"hangs", "sleep 1000", "", "no answer in time"},
		{"child-hangs", "sleep 1000 & sleep 1000", "", "no answer in time"},
		{"endless", "exec cat /dev/zero", strings.Repeat("\x00", maxOutput), "more than"},
		{"endless-child", "trap '' PIPE; cat /dev/zero; sleep 1000", strings.Repeat("\x00", maxOutput), "more than"},
		{"endless-errors", "exec cat /dev/zero >&2", "", "no answer in time"},
	} {
		limit := time.Second
		if c.err != "no answer in time" {
			limit = 30 * time.Second // it ends by itself, or with too much output
		}
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		began := time.Now()
		out, err := output(ctx, script(c.name, c.text))
		cancel()
		if string(out) != c.out || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %d bytes, %v", c.name, len(out), err)
		}
		if took := time.Since(began); took > limit+4*time.Second {
			t.Errorf("%s: took %v", c.name, took)
		}
	}
	if _, err := output(t.Context(), "no-such-command-here"); !errors.Is(err, errNoCommand) {
		t.Errorf("%v", err)
	}
}

// TestEnvironmentFile: the variables of the subnet file are those that docker reads.
func TestEnvironmentFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "subnet.env")
	if err := os.WriteFile(path, []byte("FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if e, err := readEnv(path); err != nil || e.MTU != 1450 || !e.IPMasq || e.Subnet != prefix("10.42.7.0/24") {
		t.Errorf("%+v, %v", e, err)
	}
	if e, err := readEnv(path + "none"); err != nil || e.MTU != 0 {
		t.Errorf("%+v, %v", e, err)
	}
	if _, err := readEnv(filepath.Dir(path)); err == nil {
		t.Error("a directory is no error")
	}
}
