package store

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path"
	"strings"
	"testing"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/lease"
	"flanneld/pkg/registry"
	"flanneld/pkg/registry/etcd"
	"flanneld/pkg/shell"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m.Run)) }

// paste runs a command line unchanged.
func paste(t *testing.T, command string, env ...string) {
	t.Helper()
	dir := t.TempDir()
	if err := lab.Etcdctl(dir); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", command)
	cmd.Env = append([]string{"PATH=" + dir}, env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s: %v\n%s", command, err, out)
	}
}

// suggested returns the commands in the error of a server without a config.
func suggested(t *testing.T, s *Store) []string {
	t.Helper()
	_, err := s.Config(t.Context())
	var remedy interface{ Commands() []string }
	if !errors.Is(err, registry.ErrNoConfig) || !errors.As(err, &remedy) {
		t.Fatalf("config: %v", err)
	}
	return remedy.Commands()
}

// For each form of a prefix, the suggested command writes the key that is read.
func TestSuggestedCommandMakesTheConfigThatIsRead(t *testing.T) {
	t.Parallel()
	server := etcdtest.StartEtcd(t)
	for prefix, keys := range map[string][2]string{ // of the config in v3 and v2
		"/coreos.com/network":          {"/coreos.com/network/config", "/coreos.com/network/config"},
		"/trailing/":                   {"/trailing/config", "/trailing/config"},
		"/trailing/many///":            {"/trailing/many/config", "/trailing/many/config"},
		"//double//inside":             {"/double/inside/config", "/double/inside/config"},
		"no/leading":                   {"no/leading/config", "/no/leading/config"},
		"no/leading/trailing/":         {"no/leading/trailing/config", "/no/leading/trailing/config"},
		"/dots/./in/../it":             {"/dots/it/config", "/dots/it/config"},
		"/with a blank":                {"/with a blank/config", "/with a blank/config"},
		`/it's $HOME "quoted" \n`:      {`/it's $HOME "quoted" \n/config`, `/it's $HOME "quoted" \n/config`},
		"/per%20cent?and#more&(those)": {"/per%20cent?and#more&(those)/config", "/per%20cent?and#more&(those)/config"},
		"/":                            {"/config", "/config"},
		"":                             {"config", "/config"},
	} {
		t.Run(prefix, func(t *testing.T) {
			for i, api := range []API{APIv3, APIv2} {
				o := etcd.Options{Endpoints: []string{server.URL}, Prefix: prefix}
				s := start(t, o, api, Identity{})
				commands := suggested(t, s)
				if len(commands) != 1 || !strings.Contains(commands[0], shell.Word(keys[i])+" ") {
					t.Errorf("%q in %s: suggested %q, want the key %s", prefix, api, commands, keys[i])
				}
				paste(t, commands[0])
				if raw, err := s.Config(t.Context()); err != nil || string(raw) != SampleConfig {
					t.Errorf("%q in %s: after %s\nthe config is %q, %v", prefix, api, commands[0], raw, err)
				}
				// While there is one in another place, no command is suggested for the next.
				paste(t, etcdctl(o, api, map[API]string{APIv3: "del", APIv2: "rm"}[api], keys[i]))
			}
		})
	}
}

// The suggested command reaches an etcd that requires certificates and a user, by whichever of its
// endpoints is available, and does not contain the password.
func TestSuggestedCommandHasTheCredentials(t *testing.T) {
	t.Parallel()
	ca := etcdtest.NewAuthority(t)
	serverCert, serverKey := ca.Issue("server")
	clientCert, clientKey := ca.Issue("client with a blank")
	server := etcdtest.StartSecured(t, serverCert, serverKey, ca.File)
	for _, api := range []API{APIv3, APIv2} {
		withUser := strings.Replace(server.URL, "://", "://flannel:hush@", 1)
		o := etcd.Options{
			Endpoints: []string{"https://127.0.0.1:1", withUser}, Prefix: "/p/",
			CAFile: ca.File, CertFile: clientCert, KeyFile: clientKey,
		}
		s := start(t, o, api, Identity{})
		command := etcdctl(o, api, map[API]string{APIv3: "put", APIv2: "set"}[api], s.regs[0].ConfigKey(), SampleConfig)
		if strings.Contains(command, "hush") || !strings.Contains(command, "=root ") {
			t.Errorf("suggested %s", command)
		}
		// This etcd has no users, so the credentials of the command are ignored.
		paste(t, strings.Replace(strings.Replace(command, "--user=root ", "", 1), "--username=root ", "", 1))
		o.Endpoints = []string{server.URL}
		reg, err := open(o, api)
		if err != nil {
			t.Fatal(err)
		}
		if raw, err := reg.Config(t.Context()); err != nil || string(raw) != SampleConfig {
			t.Errorf("%s: after %s\nthe config is %q, %v", api, command, raw, err)
		}
		reg.Close()
	}
}

// The commands that make a host lease another subnet delete its key and its claim.
func TestMoveCommand(t *testing.T) {
	for api, do := range map[API]string{APIv3: "ETCDCTL_API=3 etcdctl --endpoints=http://127.0.0.1:1 del", APIv2: "ETCDCTL_API=2 etcdctl --endpoints=http://127.0.0.1:1 rm"} {
		s := start(t, etcd.Options{Endpoints: []string{"http://127.0.0.1:1"}, Prefix: "/net"}, api, Identity{})
		got := s.Registry().MoveCommand(lease.SubnetsOf(netip.MustParsePrefix("10.42.7.0/24")), []string{"/run/subnet.env", "/run/a b"})
		want := "systemctl stop flanneld; " + do + " /net/subnets/10.42.7.0-24; rm -f /run/subnet.env '/run/a b'; systemctl start flanneld"
		if got != want {
			t.Errorf("%s:\n%s\nwant\n%s", api, got, want)
		}
	}
}

// A config is found under the same path with or without its leading slash, which are two keys in
// v3. No command is suggested that creates a second one.
func TestConfigWithTheOtherSlashIsFound(t *testing.T) {
	t.Parallel()
	server := etcdtest.StartEtcd(t)
	for _, c := range [][2]string{{"/a/b", "a/b"}, {"c/d/", "/c/d"}} {
		there, here := etcd.Options{Endpoints: []string{server.URL}, Prefix: c[1]}, etcd.Options{Endpoints: []string{server.URL}, Prefix: c[0]}
		paste(t, etcdctl(there, APIv3, "put", path.Join(c[1], "config"), SampleConfig))
		s := start(t, here, APIv3, Identity{})
		if _, err := s.Config(t.Context()); err == nil || !strings.Contains(err.Error(), "there is one at "+c[1]+"/config in the v3 API") {
			t.Errorf("%s: %v", c[0], err)
		}
		if commands := suggested(t, s); len(commands) > 0 {
			t.Errorf("%s: suggested %q", c[0], commands)
		}
	}
}
