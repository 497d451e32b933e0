package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

func mustParse(t *testing.T, args, env []string) *commandLine {
	t.Helper()
	cl, err := parse(args, env)
	if err != nil {
		t.Fatalf("%q %q: %v", args, env, err)
	}
	return cl
}

func TestDefaults(t *testing.T) {
	o := mustParse(t, nil, nil).options
	if got := strings.Join(o.Etcd.Endpoints, " "); got != "http://127.0.0.1:4001 http://127.0.0.1:2379" {
		t.Errorf("endpoints %s", got)
	}
	if o.Etcd.Prefix != "/coreos.com/network" || o.SubnetFile != "/run/flannel/subnet.env" || o.RenewMargin != time.Hour ||
		o.Rules.Masquerade || o.Healthz.String() != "0.0.0.0:0" {
		t.Errorf("got %+v", o)
	}
}

func TestFlagForms(t *testing.T) {
	for _, args := range [][]string{
		{"-etcd-prefix=/p", "-iface=a", "-ip-masq=true", "-v=2"},
		{"--etcd-prefix=/p", "--iface=a", "--ip-masq=TRUE", "--v=2"},
		{"-etcd-prefix", "/p", "-iface", "a", "-ip-masq", "-v", "2"},
		{"--etcd-prefix", "/p", "--iface", "a", "--ip-masq=1", "--v", "0x2"},
		{"-etcd-prefix=/q", "-iface=a", "-ip-masq=false", "-ip-masq=t", "-v=1", "-v=02", "-etcd-prefix", "/p"}, // the last wins
		{"/opt/bin/flanneld", "-etcd-prefix=/p", "-iface=a", "-ip-masq", "-v=2", "--"},
	} {
		cl := mustParse(t, args, nil)
		o := cl.options
		if o.Etcd.Prefix != "/p" || strings.Join(o.Uplink.Ifaces, ",") != "a" || !o.Rules.Masquerade || cl.verbosity != 2 {
			t.Errorf("%q: got %+v, verbosity %d", args, o, cl.verbosity)
		}
	}
	o := mustParse(t, []string{"-iface=a", "--iface", "b", "-iface-regex", "-x", "-etcd-endpoints= http://a:1 , b:2,"}, nil).options
	if len(o.Uplink.Ifaces) != 2 || o.Uplink.Regexes[0] != "-x" || strings.Join(o.Etcd.Endpoints, "|") != "http://a:1|b:2" {
		t.Errorf("got %+v", o)
	}
}

func TestEnvironment(t *testing.T) {
	env := []string{"FLANNELD_ETCD_PREFIX=/env", "FLANNELD_IFACE=a,b", "FLANNELD_IP_MASQ=true", "FLANNELD_SUBNET_FILE=",
		"FLANNELD_V=x", "FLANNELD_ETCD_ENDPOINT=http://a", "FLANNELD_VERSION=true", "FLANNEL_OPTIONS=-x", "FLANNELD_HEALTHZ_PORT=99"}
	cl := mustParse(t, []string{"-healthz-port=1"}, env)
	o := cl.options
	if o.Etcd.Prefix != "/env" || len(o.Uplink.Ifaces) != 1 || o.Uplink.Ifaces[0] != "a,b" || !o.Rules.Masquerade || o.SubnetFile != "/run/flannel/subnet.env" || cl.showVersion || o.Healthz.Port() != 1 {
		t.Errorf("got %+v", o)
	}
	warnings := ""
	for _, w := range cl.warnings {
		warnings += fmt.Sprintln(w.text, w.fields)
	}
	for _, want := range []string{"invalid value [variable FLANNELD_V err --v: \"x\": must be a whole number]", "unknown environment variable [variable FLANNELD_ETCD_ENDPOINT]", "unknown environment variable [variable FLANNELD_VERSION]"} {
		if !strings.Contains(warnings, want) {
			t.Errorf("no warning %q in:\n%s", want, warnings)
		}
	}
}

func TestBadCommandLines(t *testing.T) {
	for _, c := range []struct {
		args string
		want string
	}{
		{"-ip-masq true -iface=eth0", `unexpected argument "true": must be a flag; a boolean flag takes its value after an equals sign: --flag=true`},
		{"stray", `unknown command "stray": must be status, `},
		{"-ip-masq stray", `unexpected argument "stray"`},
		{"/opt/bin/flanneld Status", `unknown command "Status": must be status, `},
		{"- -iface=a", `unexpected argument "-"`},
		{"-- -iface=a", `unexpected argument "-iface=a"`},
		{"-nonsense", `unknown flag -nonsense`},
		{"---iface=a", `unknown flag ---iface=a`},
		{"-iface", `--iface: must have a value`},
		{"-kube-subnet-mgr", `--kube-subnet-mgr is not supported: this flanneld keeps its leases in etcd; there is no Kubernetes mode`},
		{"-listen=fd://", `--listen is not supported: there is no client and server mode`},
		{"-remote=10.0.0.1:8888", `--remote is not supported: there is no client and server mode`},
		{"-networks=a,b", `--networks is not supported: one daemon serves one network`},
		{"-watch-networks", `--watch-networks is not supported: one daemon serves one network`},
	} {
		var stdout, stderr bytes.Buffer
		code := run(context.Background(), func() {}, strings.Fields(c.args), nil, &stdout, &stderr)
		if code != 2 || !strings.HasPrefix(stderr.String(), "flanneld: "+c.want) || stdout.Len() > 0 {
			t.Errorf("%s: exit %d, said %q, want %q", c.args, code, stderr.String(), c.want)
		}
	}
}

// TestBadValueOfEachFlag checks that the message about a bad value names the flag and the value,
// and says what the value must be. A new flag needs a bad value here, or a place among those that
// take any text.
func TestBadValueOfEachFlag(t *testing.T) {
	type valueOf struct {
		must   string
		values []string
	}
	byType := map[string]valueOf{"bool": {"true or false", []string{"maybe"}}, "int": {"a whole number", []string{"many"}}, "duration": {"a time such as 500ms, 2s or 1m", []string{"5", "often"}}}
	const address = "an IPv4 address such as 198.51.100.7"
	bad := map[string]valueOf{
		"etcd-endpoints": {"a comma separated list of URLs", []string{",", ""}}, "etcd-api": {"auto, v2 or v3", []string{"v4", ""}},
		"iface-regex": {"a regular expression: error parsing regexp", []string{"("}}, "iface-can-reach": {address, []string{"x", "::1"}},
		"public-ip": {address, []string{"x", "::1", "0.0.0.0"}}, "subnet-file": {"a path", []string{""}}, "healthz-ip": {"an IP address", []string{"x", ""}},
		"subnet-lease-renew-margin": {"1 to 1439", []string{"0", "1440"}}, "iptables-resync": {"1 to 3600", []string{"0", "3601"}},
		"healthz-port": {"0 (off) to 65535", []string{"-1", "65536"}}, "probe-interval": {"0 (off) or 100ms to 1h", []string{"-1s", "99ms", "1h0m1s"}},
		"status-listen": {"an IP address and a port, such as 127.0.0.1:9285", []string{"9560", "127.0.0.1", ":0", "127.0.0.1:65536", "localhost:9560"}},
	}
	anyText := []string{"etcd-discovery-srv", "etcd-prefix", "etcd-keyfile", "etcd-certfile", "etcd-cafile", "etcd-username", "etcd-password", "iface"}
	mustParse(t, nil, nil).flags.VisitAll(func(f *pflag.Flag) {
		if f.Name == "help" {
			return
		}
		all := []valueOf{bad[f.Name], byType[f.Value.Type()]}
		if _, idle := f.Annotations[noEffect]; len(all[0].values)+len(all[1].values) == 0 && !idle && !slices.Contains(anyText, f.Name) {
			t.Errorf("--%s: there must be a bad value here", f.Name)
		}
		for _, b := range all {
			for _, v := range b.values {
				want := fmt.Sprintf("--%s: %q: must be %s", f.Name, v, b.must)
				if _, err := parse([]string{"--" + f.Name + "=" + v}, nil); err == nil || !strings.HasPrefix(err.Error(), want) {
					t.Errorf("--%s=%s: got %v, want %q", f.Name, v, err, want)
				}
			}
		}
	})
}

func TestHistoricalFlags(t *testing.T) {
	cl := mustParse(t, strings.Fields("-logtostderr=true -alsologtostderr -log_dir=/var/log -stderrthreshold=2 -subnet-dir=/run/x -kube-api-url=http://a -vmodule=a=1 -listen= -kube-subnet-mgr=false"), nil)
	if len(cl.warnings) != 1 {
		t.Fatalf("want one warning, got %q", cl.warnings)
	}
	for _, flag := range []string{"-logtostderr", "-alsologtostderr", "-log_dir", "-stderrthreshold", "-subnet-dir", "-kube-api-url", "-vmodule", "-listen", "-kube-subnet-mgr"} {
		if !strings.Contains(fmt.Sprint(cl.warnings[0].fields...), flag) {
			t.Errorf("%s is not in the warning %q", flag, cl.warnings[0])
		}
	}
}

func TestHelpAndVersion(t *testing.T) {
	for _, args := range []string{"-h", "--help", "-help", "-iface=a -help"} {
		var stdout, stderr bytes.Buffer
		if code := run(context.Background(), func() {}, strings.Fields(args), nil, &stdout, &stderr); code != 0 || stderr.Len() > 0 {
			t.Errorf("%s: exit %d, %s", args, code, stderr.String())
		}
		for _, want := range []string{"\netcd:\n", "--iface-can-reach", "\"/coreos.com/network\")", "FLANNELD_ETCD_PREFIX"} {
			if !strings.Contains(stdout.String(), want) {
				t.Errorf("%s: help lacks %q", args, want)
			}
		}
		if strings.Contains(stdout.String(), "--listen") {
			t.Error("help shows flags without effect")
		}
	}
	var stdout, stderr bytes.Buffer
	if code := run(context.Background(), func() {}, []string{"--version"}, nil, &stdout, &stderr); code != 0 || strings.TrimSpace(stderr.String()) != version {
		t.Errorf("exit %d, %q, %q", code, stdout.String(), stderr.String())
	}
}

// TestReadmeHasEachFlag checks that the README's table has each flag that has an effect, with its
// default, and no other.
func TestReadmeHasEachFlag(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(readme), "\n| Flag |")
	table, _, _ := strings.Cut(after, "\n\n")
	defaults := map[string]string{}
	for _, row := range strings.Split(table, "\n")[2:] {
		cells := strings.Split(row, "|")
		for _, m := range regexp.MustCompile("`-([a-z-]+)`").FindAllStringSubmatch(cells[1], -1) {
			defaults[m[1]] = strings.Trim(cells[2], " `")
		}
	}
	mustParse(t, nil, nil).flags.VisitAll(func(f *pflag.Flag) {
		if _, idle := f.Annotations[noEffect]; idle {
			return
		}
		def, there := defaults[f.Name]
		if !there {
			t.Errorf("README.md: there is no -%s in the table of flags", f.Name)
		}
		switch f.DefValue {
		case "", "[]": // the table may say in words what that means
		case "false":
			if def != "" && def != "false" {
				t.Errorf("README.md: -%s has the default %s", f.Name, def)
			}
		default:
			if word, _, _ := strings.Cut(def, " "); word != f.DefValue {
				t.Errorf("README.md: -%s has the default %s, not %s", f.Name, def, f.DefValue)
			}
		}
		delete(defaults, f.Name)
	})
	for name := range defaults {
		t.Errorf("README.md: there is no flag -%s", name)
	}
}

// FuzzFlags: any command line and environment is accepted, or rejected with an error.
func FuzzFlags(f *testing.F) {
	f.Add("-ip-masq=true\n--iface=eth0\n-etcd-endpoints=http://a:2379,b", "FLANNELD_IFACE=eth1\nFLANNELD_V=x")
	f.Add("/opt/bin/flanneld\n-iface-regex=[\n-public-ip\n1.2.3.4", "FLANNELD_=\nFLANNELD_VERSION=1")
	f.Add("-iptables-resync=0\n---v", "FLANNELD_ETCD_ENDPOINTS=,")
	f.Fuzz(func(t *testing.T, args, env string) {
		cl, err := parse(strings.Split(args, "\n"), strings.Split(env, "\n"))
		if err != nil && err.Error() == "" {
			t.Error("an error without a word")
		}
		if err == nil && !cl.showVersion && (len(cl.options.Etcd.Endpoints) == 0 || cl.options.SubnetFile == "") {
			t.Errorf("%q %q: accepted as %+v", args, env, cl.options)
		}
	})
}
