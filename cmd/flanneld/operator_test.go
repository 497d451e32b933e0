package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/etcdkeys"
	"flanneld/pkg/lab/etcdtest"
	"flanneld/pkg/lab/wait"
	"flanneld/pkg/operator"
)

// An operatorBed has an etcd, and what an operator types.
type operatorBed struct {
	*testing.T
	server *etcdtest.Etcd
	keys   etcdkeys.Store // of the API of the network
	env    []string
	stdin  io.Reader
}

// eachOperator runs a test with each API of an etcd of its own.
func eachOperator(t *testing.T, test func(t *testing.T, b *operatorBed, api string)) {
	for _, api := range []string{"v2", "v3"} {
		t.Run(api, func(t *testing.T) {
			t.Parallel()
			b := newOperatorBed(t, api, etcdtest.StartEtcd(t))
			test(t, b, api)
		})
	}
}

func newOperatorBed(t *testing.T, api string, server *etcdtest.Etcd) *operatorBed {
	return &operatorBed{t, server, server.Store(t, api), []string{
		"FLANNELD_ETCD_ENDPOINTS=" + server.URL, "FLANNELD_SUBNET_FILE=" + filepath.Join(t.TempDir(), "subnet.env"),
	}, strings.NewReader("")}
}

// types runs a command, and returns what it prints and its exit code.
func (b *operatorBed) types(args ...string) (stdout, stderr string, code int) {
	b.Helper()
	var out, errs bytes.Buffer
	code = runSubcommand(&invocation{b.Context(), b.env, b.stdin, &out, &errs}, args)
	return out.String(), errs.String(), code
}

// pipes runs a command with its standard input.
func (b *operatorBed) pipes(input string, args ...string) (stdout, stderr string, code int) {
	b.Helper()
	b.stdin = strings.NewReader(input)
	return b.types(args...)
}

// stored returns the value of a key; "-" if there is none.
func (b *operatorBed) stored(key string) etcdkeys.Entry {
	b.Helper()
	e, err := b.keys.Get(b.Context(), defaultPrefix+"/"+key)
	if errors.Is(err, etcdkeys.ErrNoKey) {
		return etcdkeys.Entry{Value: "-"}
	}
	if err != nil {
		b.Fatal(err)
	}
	return e
}

func (b *operatorBed) put(key, value string, ttl time.Duration) {
	b.Helper()
	if err := b.keys.Put(b.Context(), defaultPrefix+"/"+key, value, ttl); err != nil {
		b.Fatal(err)
	}
}

const hostLease = `{"PublicIP":"%s","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:07"}}`

// TestConfigSet: of valid, invalid and dangerous configs, in the API that has the network.
func TestConfigSet(t *testing.T) {
	eachOperator(t, func(t *testing.T, b *operatorBed, api string) {
		if out, errs, code := b.types("config", "get", "-etcd-api="+api); code != operatorRefused || out != "" || !strings.Contains(errs, "no network config at /coreos.com/network/config") {
			t.Errorf("without a config: exit code %d, %q, %q", code, out, errs)
		}
		if _, errs, code := b.types("config", "check", "-etcd-api="+api); code != operatorRefused || !strings.Contains(errs, "no network config") {
			t.Errorf("check without a config: exit code %d, %q", code, errs)
		}
		const first = `{"Network": "10.42.0.0/16", "Backend": {"Type": "vxlan"}}`
		out, errs, code := b.pipes("\ufeff"+first+"\n\n", "config", "set", "-etcd-api="+api, "-")
		if code != 0 || errs != "" || b.stored("config").Value != first || !strings.HasSuffix(out, "\nwritten\n") || !strings.Contains(out, "in the "+api+" API") {
			t.Fatalf("the first config: exit code %d, %s%s, stored %q", code, out, errs, b.stored("config").Value)
		}
		// From now on, the API is known by its config.
		b.put("subnets/10.42.7.0-24", fmt.Sprintf(hostLease, "192.0.2.7"), time.Hour)
		if out, errs, code := b.types("config", "get"); code != 0 || out != first+"\n" {
			t.Errorf("get: exit code %d, %q, %q", code, out, errs)
		}
		for _, c := range []struct {
			name, config, args string
			code               int
			out, errs          string // in what is printed
			writes             bool
		}{
			{"the same", "{\n\"Network\":\"10.42.0.0/16\",\"Backend\":{\"Type\":\"vxlan\"}}", "-", 0, "no difference", "", false},
			{"harmless", `{"Network":"10.42.0.0/16","SubnetLeaseTTL":3600,"Backend":{"Type":"vxlan"}}`, "-", 0, "\nnote: SubnetLeaseTTL is 3600, was 86400", "", true},
			{"an unknown key", `{"Network":"10.42.0.0/16","Subnetlenght":24,"Backend":{"Type":"vxlan"}}`, "-", 0, "\n-   \"SubnetLeaseTTL\": 3600\n", "warning: Subnetlenght is not known, and ignored", true},
			{"another type", `{"Network":"10.42.0.0/16","Backend":{"Type":"host-gw"}}`, "-", 1, "\nwarning: Backend.Type is host-gw, was vxlan\n", "not written, because this is dangerous: repeat it with --yes", false},
			{"a renumbered host", `{"Network":"10.42.0.0/16","SubnetMin":"10.42.8.0","Backend":{"Type":"vxlan"}}`, "-", 1, "\nwarning: 1 lease is outside", "not written", false},
			{"invalid", `{"Network":"10.42.0.0/40","SubnetLeaseTTL":1,"Backend":{"Type":"vxlan","VNI":-1}}`, "--yes -", 1, "",
				"flanneld config set: Network: \"10.42.0.0/40\": must be an IPv4 network from /1 to /28 such as \"10.42.0.0/16\"\n" +
					"flanneld config set: SubnetLeaseTTL: 1: must be a whole number from 60 to 31622400\n" +
					"flanneld config set: Backend.VNI: -1: must be a whole number from 0 to 9999999\n", false},
			{"no JSON", "Network=10.42.0.0/16", "-yes -", 1, "", "must be JSON", false},
			{"too long", strings.Repeat(" ", 1) + `{"Network":"10.42.0.0/16","x":"` + strings.Repeat("x", 70000) + `"}`, "- -yes", 1, "", "must be at most 65536 bytes long", false},
			{"dangerous and meant", `{"Network":"10.43.0.0/16","Backend":{"Type":"vxlan"}}`, "- -yes", 0, "\nwarning: Network is 10.43.0.0/16, was 10.42.0.0/16\n", "", true},
		} {
			before := b.stored("config").Value
			for _, command := range []string{"check", "set"} {
				args := strings.Fields(c.args)
				if command == "check" {
					args = []string{"-"}
				}
				out, errs, code := b.pipes(c.config, append([]string{"config", command}, args...)...)
				want, wantErrs := c.code, c.errs
				if valid := c.out != ""; command == "check" && valid {
					want = 0
					if c.code != 0 {
						wantErrs = ""
					}
				}
				if code != want || !strings.Contains(out, c.out) || !strings.Contains(strings.ReplaceAll(errs, "config check:", "config set:"), wantErrs) {
					t.Errorf("%s: %s: exit code %d, %s%s; want %d, %q, %q", c.name, command, code, out, errs, want, c.out, c.errs)
				}
				now := b.stored("config")
				if wrote := now.Value != before; wrote != (c.writes && command == "set") || wrote && now.Value != c.config || now.TTL != 0 {
					t.Errorf("%s: %s: stored %+v", c.name, command, now)
				}
			}
		}
		file := filepath.Join(t.TempDir(), "network.json")
		if err := os.WriteFile(file, []byte(first), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, errs, code := b.types("config", "set", file, "--yes"); code != 0 || b.stored("config").Value != first {
			t.Errorf("a file: exit code %d, %s%s", code, out, errs)
		}
		other := b.server.Store(t, map[string]string{"v2": "v3", "v3": "v2"}[api])
		if _, err := other.Get(t.Context(), defaultPrefix+"/config"); !errors.Is(err, etcdkeys.ErrNoKey) {
			t.Errorf("the other API has a config: %v", err)
		}
	})
}

// TestInvalidStoredConfigIsReplaced: also one that is too long to be read.
func TestInvalidStoredConfigIsReplaced(t *testing.T) {
	eachOperator(t, func(t *testing.T, b *operatorBed, _ string) {
		for _, bad := range []string{"nonsense \x1b[2J", "", strings.Repeat("x", 100_000)} {
			b.put("config", bad, 0)
			if out, errs, code := b.types("config", "check"); code != operatorRefused || out != "" || errs == "" {
				t.Errorf("check of %.20q: exit code %d, %q, %q", bad, code, out, errs)
			}
			out, errs, code := b.pipes(vxlanConfig, "config", "set", "-")
			if code != 0 || b.stored("config").Value != vxlanConfig || strings.Contains(out, "\x1b") {
				t.Errorf("instead of %.20q: exit code %d, %q, %q", bad, code, out, errs)
			}
		}
	})
}

// TestWhereAConfigBegins: with no config in either API, in that of the last run, else in v3.
func TestWhereAConfigBegins(t *testing.T) {
	for _, last := range []string{"", "v2", "v3"} {
		b := newOperatorBed(t, "v3", etcdtest.StartEtcd(t))
		if last == "v2" {
			b.keys = b.server.Store(t, "v2")
		}
		if last != "" {
			claim := fmt.Sprintf(`{"Store":%q,"Subnet":"10.42.7.0-24","Held":{"PublicIP":"192.0.2.7"},"Next":{"PublicIP":"192.0.2.7"}}`, last)
			_, file, _ := strings.Cut(b.env[1], "=")
			if err := os.WriteFile(file+".lease", []byte(claim), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		out, errs, code := b.pipes(vxlanConfig, "config", "set", "-")
		if code != 0 || b.stored("config").Value != vxlanConfig {
			t.Errorf("last %q: exit code %d, %s%s", last, code, out, errs)
		}
	}
}

// A terminal is a pseudo terminal: what a person reads and types.
func terminal(t *testing.T) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { person.Close() })
	n, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		program, err = os.OpenFile(fmt.Sprint("/dev/pts/", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return person, program
}

// TestDangerousConfigIsAskedFor: on a terminal. A config that is written before the answer wins.
func TestDangerousConfigIsAskedFor(t *testing.T) {
	const after, between = `{"Network":"10.43.0.0/16","Backend":{"Type":"vxlan"}}`, `{"Network":"10.44.0.0/16"}`
	file := filepath.Join(t.TempDir(), "network.json")
	if err := os.WriteFile(file, []byte(after), 0o600); err != nil {
		t.Fatal(err)
	}
	eachOperator(t, func(t *testing.T, b *operatorBed, _ string) {
		for _, c := range []struct {
			answer string
			race   bool
			code   int
			errs   string
			stored string
		}{
			{"n", false, operatorRefused, "not written", vxlanConfig},
			{"", false, operatorRefused, "not written", vxlanConfig},
			{"yes", true, operatorRefused, "not written: another network config was written since this one was compared", between},
			{"y", false, 0, "", after},
		} {
			b.put("config", vxlanConfig, 0)
			person, program := terminal(t)
			var out bytes.Buffer
			errs := &notifying{asked: make(chan struct{})}
			done := make(chan int)
			go func() {
				done <- runSubcommand(&invocation{t.Context(), b.env, program, &out, errs}, []string{"config", "set", file})
			}()
			<-errs.asked
			if c.race {
				b.put("config", between, 0)
			}
			io.WriteString(person, c.answer+"\n")
			if code := <-done; code != c.code || !strings.Contains(errs.text.String(), c.errs) || b.stored("config").Value != c.stored {
				t.Errorf("%q: exit code %d, %s%s, stored %s", c.answer, code, &out, &errs.text, b.stored("config").Value)
			}
		}
	})
}

// notifying is a standard error that reports the question.
type notifying struct {
	text  bytes.Buffer
	asked chan struct{}
}

func (n *notifying) Write(p []byte) (int, error) {
	if strings.Contains(string(p), "Write it?") {
		defer close(n.asked)
	}
	return n.text.Write(p)
}

// TestOperatorCredentials: TLS, users and passwords are those of the daemon's flags and variables;
// what is wrong with them is said, without the password.
func TestOperatorCredentials(t *testing.T) {
	ca := etcdtest.NewAuthority(t)
	cert, key := ca.Issue("server")
	clientCert, clientKey := ca.Issue("client")
	server := etcdtest.StartSecured(t, cert, key, ca.File)
	for _, api := range []string{"v2", "v3"} {
		b := &operatorBed{T: t, server: server, env: []string{
			"FLANNELD_ETCD_ENDPOINTS=" + server.URL, "FLANNELD_ETCD_CAFILE=" + ca.File, "FLANNELD_ETCD_API=" + api,
			"FLANNELD_SUBNET_FILE=" + filepath.Join(t.TempDir(), "subnet.env"),
		}}
		if out, errs, code := b.types("config", "get"); code != operatorUnknown || out != "" || !strings.Contains(errs, "set -etcd-certfile and -etcd-keyfile") {
			t.Errorf("%s without a certificate: exit code %d, %q, %q", api, code, out, errs)
		}
		pair := []string{"-etcd-certfile=" + clientCert, "-etcd-keyfile=" + clientKey}
		if out, errs, code := b.pipes(vxlanConfig, append([]string{"config", "set", "-"}, pair...)...); code != 0 {
			t.Errorf("%s: exit code %d, %q, %q", api, code, out, errs)
		}
		if out, errs, code := b.types(append([]string{"leases", "list"}, pair...)...); code != 0 || out != "no leases\n" {
			t.Errorf("%s: exit code %d, %q, %q", api, code, out, errs)
		}
	}
	eachOperator(t, func(t *testing.T, b *operatorBed, api string) {
		b.put("config", vxlanConfig, 0)
		const password = "s3cret!"
		if err := b.keys.PermitReading(t.Context(), false, "reader", password, defaultPrefix); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			name, user, password, args string
			code                       int
			errs                       string
		}{
			{"root", "root", password, "config get", 0, ""},
			{"root writes", "root", password, "config set - --yes", 0, ""},
			{"a reader", "reader", password, "leases list", 0, ""},
			{"a reader writes", "reader", password, "config set - --yes", operatorUnknown, "etcd does not permit this user to write the network config"},
			{"a reader reserves", "reader", password, "leases reserve 10.42.9.0/24 -public-ip=192.0.2.9", operatorUnknown, "etcdctl"},
			{"a wrong password", "root", "not" + password, "config get", operatorUnknown, "flanneld config get: read"},
			{"nobody", "", "", "config get", operatorUnknown, "flanneld config get: read"},
		} {
			b.env = append(b.env[:2:2], "FLANNELD_ETCD_USERNAME="+c.user, "FLANNELD_ETCD_PASSWORD="+c.password, "FLANNELD_ETCD_API="+api)
			b.stdin = strings.NewReader(fmt.Sprintf(`{"Network":"10.42.0.0/16","SubnetLeaseTTL":%d,"Backend":{"Type":"vxlan"}}`, 3600+len(c.name)))
			out, errs, code := b.types(strings.Fields(c.args)...)
			if code != c.code || !strings.Contains(errs, c.errs) || strings.Contains(out+errs, password) {
				t.Errorf("%s: exit code %d, %s%s; want %d, %q", c.name, code, out, errs, c.code, c.errs)
			}
		}
	})
}

// TestOperatorWithoutEtcd: no answer is not taken for an absent config, and a file is validated in
// any case.
func TestOperatorWithoutEtcd(t *testing.T) {
	server := etcdtest.StartEtcd(t)
	b := newOperatorBed(t, "v3", server)
	server.Stop()
	for _, args := range []string{"config get", "config set -", "config check -", "leases list", "leases release 10.42.7.0/24"} {
		if out, errs, code := b.pipes(vxlanConfig, strings.Fields(args)...); code != operatorUnknown || out != "" || !strings.Contains(errs, "connection refused") {
			t.Errorf("%s: exit code %d, %q, %q", args, code, out, errs)
		}
	}
	if _, errs, code := b.pipes("{}", "config", "check", "-"); code != operatorRefused || !strings.Contains(errs, "Network: (missing)") {
		t.Errorf("exit code %d, %q", code, errs)
	}
}

// TestLeasesList: as a table and as JSON.
func TestLeasesList(t *testing.T) {
	eachOperator(t, func(t *testing.T, b *operatorBed, _ string) {
		b.put("config", vxlanConfig, 0)
		b.put("subnets/10.42.9.0-24", `{"PublicIP":"192.0.2.9"}`, 0)
		b.put("subnets/10.42.7.0-24", fmt.Sprintf(hostLease, "192.0.2.7"), 2*time.Hour+30*time.Second)
		b.put("subnets/10.42.6.0-24", fmt.Sprintf(hostLease, "127.0.0.1"), 45*time.Minute)
		b.put("subnets/10.42.8.0-24", "nonsense\x1b", time.Hour)
		b.put("subnets/notes", "x", 0)
		out, errs, code := b.types("leases", "list")
		const want = "subnet\tpublic IP\tbackend\ttime left\thost\n10.42.6.0/24\t127.0.0.1\tvxlan\t44 min 59 s\tthis one\n10.42.7.0/24\t192.0.2.7\tvxlan\t2 h\t-\n10.42.9.0/24\t192.0.2.9\t-\treserved, does not expire\t-\ninvalid entry 10.42.8.0-24: "
		out = regexp.MustCompile(`44 min 5\d s|45 min`).ReplaceAllString(out, "44 min 59 s")
		if code != 0 || errs != "" || !strings.HasPrefix(out, want) || !strings.Contains(out, "invalid entry notes: key is not of the form") || strings.Contains(out, "\x1b") {
			t.Errorf("exit code %d, %s%s", code, out, errs)
		}
		var d operator.Leases
		out, _, code = b.types("leases", "list", "-json")
		if err := json.Unmarshal([]byte(out), &d); err != nil || code != 0 || d.Version != 1 || len(d.Leases) != 3 || !d.Leases[0].Own || len(d.Invalid) != 2 {
			t.Fatalf("exit code %d, %v, %s", code, err, out)
		}
		if l := d.Leases[1]; l.Own || l.Reserved || l.Remaining == nil || *l.Remaining < 7100 || *l.Remaining > 7230 || l.Expires == nil || l.Backend != "vxlan" {
			t.Errorf("%+v", l)
		}
		if l := d.Leases[2]; l.Own || !l.Reserved || l.Remaining != nil || l.Expires != nil || l.PublicIP.String() != "192.0.2.9" {
			t.Errorf("%+v", l)
		}
		b.put("config", `{"Network":"10.42.0.0/16"}`, 0)
		if out, _, _ := b.types("leases", "list"); !strings.Contains(out, "192.0.2.9\tudp\t") {
			t.Errorf("with udp: %s", out)
		}
	})
}

// TestLeasesReserve: what is written is what an operator of the original writes: a key without a
// time to live.
func TestLeasesReserve(t *testing.T) {
	eachOperator(t, func(t *testing.T, b *operatorBed, _ string) {
		if _, errs, code := b.types("leases", "reserve", "10.42.9.0/24", "-public-ip=192.0.2.9"); code != operatorRefused || !strings.Contains(errs, "no network config") {
			t.Errorf("without a config: exit code %d, %q", code, errs)
		}
		b.put("config", vxlanConfig, 0)
		held := fmt.Sprintf(hostLease, "192.0.2.7")
		b.put("subnets/10.42.7.0-24", held, time.Hour)
		b.put("subnets/10.42.20.0-23", held, time.Hour)
		b.put("subnets/10.42.30.0-24", "nonsense", 0)
		b.put("subnets/10.42.31.0-24&fd42:0:0:7::-64", fmt.Sprintf(hostLease, "192.0.2.31"), time.Hour)
		b.put("subnets/10.42.32.9-24", held, 0)
		b.put("subnets/old-10.42.33.0-024", held, 0)
		for _, c := range []struct {
			args   string
			code   int
			says   string
			key    string // and its value afterwards
			stored string
		}{
			{"10.42.9.0/24", 1, "10.42.9.0/24 is not leased; --public-ip says for which host", "10.42.9.0-24", "-"},
			{"10.42.9.0/24 --public-ip=192.0.2.9", 0, "10.42.9.0/24 for 192.0.2.9: reserved\n", "10.42.9.0-24", `{"PublicIP":"192.0.2.9","PublicIPv6":null}`},
			{"10.42.9.0/24 -public-ip 192.0.2.9", 0, "10.42.9.0/24 for 192.0.2.9: unchanged\n", "10.42.9.0-24", `{"PublicIP":"192.0.2.9","PublicIPv6":null}`},
			{"10.42.9.0/24 --public-ip=192.0.2.10", 1, "10.42.9.0/24 is leased by 192.0.2.9", "10.42.9.0-24", `{"PublicIP":"192.0.2.9","PublicIPv6":null}`},
			{"10.42.7.0/24", 0, "10.42.7.0/24 for 192.0.2.7: reserved\nnote: 192.0.2.7 has a lease of 10.42.20.0/23 and keeps that", "10.42.7.0-24", held},
			{"10.42.10.0/24 --public-ip=192.0.2.9 -json", 0, `"result": "reserved"`, "10.42.10.0-24", `{"PublicIP":"192.0.2.9","PublicIPv6":null}`},
			{"10.42.21.0/24 --public-ip=192.0.2.9", 1, "10.42.21.0/24 overlaps 10.42.20.0/23, which is leased by 192.0.2.7", "10.42.21.0-24", "-"},
			{"10.42.30.0/24 --public-ip=192.0.2.9", 1, "invalid entry", "10.42.30.0-24", "nonsense"},
			{"10.42.31.0/24 --public-ip=192.0.2.31", 1, "leased by 192.0.2.31, with another key: 10.42.31.0-24&fd42:0:0:7::-64", "10.42.31.0-24", "-"},
			{"10.42.32.0/24 --public-ip=192.0.2.9", 1, "the key 10.42.32.9-24 is not one of flanneld's, and some versions of flannel read it as a lease of 10.42.32.0/24", "10.42.32.0-24", "-"},
			{"10.42.33.0/24 --public-ip=192.0.2.9", 1, "the key old-10.42.33.0-024 is not", "10.42.33.0-24", "-"},
			{"10.42.11.0/25 --public-ip=192.0.2.9", 1, "must be a subnet of length 24 from 10.42.1.0 to 10.42.255.0", "10.42.11.0-25", "-"},
			{"10.43.11.0/24 --public-ip=192.0.2.9", 1, "must be a subnet of length 24", "10.43.11.0-24", "-"},
			{"10.42.12.0/24 --public-ip=10.42.12.1", 1, "must not be in the subnet", "10.42.12.0-24", "-"},
		} {
			out, errs, code := b.types(append([]string{"leases", "reserve"}, strings.Fields(c.args)...)...)
			if e := b.stored("subnets/" + c.key); code != c.code || !strings.Contains(out+errs, c.says) || e.Value != c.stored || e.TTL != 0 {
				t.Errorf("%s: exit code %d, %s%s, stored %+v; want %d, %q, %q", c.args, code, out, errs, e, c.code, c.says, c.stored)
			}
		}
	})
}

// TestLeasesRelease: what remains for a moment is a lease that any version of the original can read,
// and then nothing.
func TestLeasesRelease(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: to send pings")
	}
	eachOperator(t, func(t *testing.T, b *operatorBed, _ string) {
		b.put("config", vxlanConfig, 0)
		b.put("subnets/10.42.7.0-24", fmt.Sprintf(hostLease, "127.0.0.2"), time.Hour)  // answers
		b.put("subnets/10.42.8.0-24", fmt.Sprintf(hostLease, "192.0.2.8"), time.Hour)  // does not
		b.put("subnets/10.42.9.0-24", `{"PublicIP":"0.0.0.0"}`, 0)                     // is nobody
		b.put("subnets/10.42.10.0-24", fmt.Sprintf(hostLease, "127.0.0.3"), time.Hour) // answers
		b.put("subnets/10.42.11.0-24", "nonsense", 0)
		for _, c := range []struct {
			args string
			code int
			says string
			key  string
			gone bool
		}{
			{"10.42.7.0/24", 1, "127.0.0.2 answers ICMP, and a flanneld that runs there would restore its lease; stop it and use --yes", "10.42.7.0-24", false},
			{"10.42.7.0/24 --yes", 0, "10.42.7.0/24 of 127.0.0.2: released\n", "10.42.7.0-24", true},
			{"10.42.8.0/24", 0, "10.42.8.0/24 of 192.0.2.8: released\n", "10.42.8.0-24", true},
			{"10.42.9.0/24", 0, "10.42.9.0/24 of 0.0.0.0: released\n", "10.42.9.0-24", true},
			{"-yes -json 10.42.10.0/24", 0, `"result": "released"`, "10.42.10.0-24", true},
			{"10.42.11.0/24", 1, "has an invalid entry", "10.42.11.0-24", false},
			{"10.42.11.0/24 -yes", 0, "10.42.11.0/24: released\n", "10.42.11.0-24", true},
			{"10.42.12.0/24", 1, "10.42.12.0/24 is not leased", "10.42.12.0-24", true},
		} {
			out, errs, code := b.types(append([]string{"leases", "release"}, strings.Fields(c.args)...)...)
			if code != c.code || !strings.Contains(out+errs, c.says) {
				t.Errorf("%s: exit code %d, %s%s; want %d, %q", c.args, code, out, errs, c.code, c.says)
			}
			e := b.stored("subnets/" + c.key)
			if !c.gone {
				if e.Value == "-" {
					t.Errorf("%s: it is gone", c.args)
				}
				continue
			}
			if e.Value != "-" && (!readByOriginals(c.key, e.Value) || e.TTL > time.Minute || e.TTL == 0) {
				t.Errorf("%s: what remains is %+v", c.args, e)
			}
			wait.True(t, c.args+": the key is gone", func() bool { return b.stored("subnets/"+c.key).Value == "-" })
		}
	})
}

// TestLeasesOfLivingHosts: that of another host, or of this one while flanneld runs, is not released.
// A lease that is reserved while its host runs stays as it is, and one that is released by mistake is
// restored.
func TestLeasesOfLivingHosts(t *testing.T) {
	eachAPI(t, lab.Options{Hosts: 2}, func(t *testing.T, c *cluster) {
		c.put("config", vxlanConfig)
		p := c.start(c.Hosts[0])
		c.start(c.Hosts[1])
		operate := func(want int, says, command string) {
			t.Helper()
			args := append(strings.Fields(command), "-etcd-endpoints="+c.Etcd.Endpoint(), "-subnet-file="+c.Hosts[0].SubnetFile)
			if said, code := c.runs(c.Hosts[0], nil, args...); code != want || !strings.Contains(said, says) {
				t.Errorf("%s: exit code %d, want %d and %q:\n%s", command, code, want, says, said)
			}
		}
		own, other := c.subnet(c.Hosts[0]).String(), c.subnet(c.Hosts[1]).String()
		operate(0, "\tthis one\n", "leases list")
		operate(operatorRefused, other+": "+c.Hosts[1].Addr.String()+" answers ", "leases release "+other)
		operate(operatorRefused, "it is the lease of this host, where flanneld runs", "leases release "+own)
		operate(0, own+" for "+c.Hosts[0].Addr.String()+": reserved", "leases reserve "+own)
		c.says(p, "lease was reserved for this host")
		_, was := c.lease(c.Hosts[0])
		operate(0, "unchanged", "leases reserve "+own)
		operate(0, "released", "leases release --yes "+own)
		c.says(p, "own lease was ") // overwritten (v2), deleted (v3)
		if _, is := c.lease(c.Hosts[0]); was.TTL != 0 || is.Value != was.Value {
			t.Errorf("there was %+v, and there is %+v", was, is)
		}
		c.connect()
		c.stop(p)
		operate(0, "released", "leases release "+own)
	})
}

// runs runs a command of flanneld on a host, and returns what it prints and its exit code.
func (c *cluster) runs(h *lab.Host, env []string, args ...string) (said string, code int) {
	c.t.Helper()
	p, err := h.Run(lab.Command{Args: args, Env: env})
	c.must(err)
	code, err = p.Wait(c.ctx)
	c.must(err)
	return p.Logs(), code
}

// readByOriginals reports whether every version of the original reads a key and its value as a lease.
func readByOriginals(key, value string) bool {
	var l struct {
		PublicIP    string
		PublicIPv6  *string
		BackendType string
		BackendData json.RawMessage
	}
	err := json.Unmarshal([]byte(value), &l)
	return err == nil && regexp.MustCompile(`^(\d+\.){3}\d+-\d+$`).MatchString(key) && net.ParseIP(l.PublicIP).To4() != nil
}

// TestReleaseOfTwoKeys: a subnet whose lease has two keys is released whole, so that no version of
// the original removes the host when one ends, and keeps the other one.
func TestReleaseOfTwoKeys(t *testing.T) {
	eachOperator(t, func(t *testing.T, b *operatorBed, _ string) {
		b.put("config", vxlanConfig, 0)
		keys := []string{"subnets/10.42.7.0-24", "subnets/10.42.7.0-24&fd42:0:0:7::-64", "subnets/10.42.7.0-24&fd42:0:0:8::-64"}
		for _, key := range keys[:2] {
			b.put(key, fmt.Sprintf(hostLease, "192.0.2.7"), time.Hour)
		}
		b.put(keys[2], "nonsense", time.Hour)
		if out, errs, code := b.types("leases", "release", "10.42.7.0/24"); code != operatorRefused || !strings.Contains(errs, "10.42.7.0/24,fd42:0:0:8::/64 has an invalid entry") {
			t.Errorf("exit code %d, %s%s", code, out, errs)
		}
		if out, errs, code := b.types("leases", "release", "--yes", "10.42.7.0/24"); code != 0 {
			t.Errorf("exit code %d, %s%s", code, out, errs)
		}
		for _, key := range keys {
			wait.True(t, key+" is gone", func() bool { return b.stored(key).Value == "-" })
		}
	})
}

// TestOriginalsFollowAReservation: the events of a reservation and its release in the v2 API are
// those that every version of the original understands, with values that it can read.
func TestOriginalsFollowAReservation(t *testing.T) {
	b := newOperatorBed(t, "v2", etcdtest.StartEtcd(t))
	b.put("config", vxlanConfig, 0)
	b.put("subnets/10.42.7.0-24", fmt.Sprintf(hostLease, "192.0.2.7"), time.Hour)
	from := b.index()
	for _, args := range []string{
		"leases reserve 10.42.7.0/24", "leases reserve 10.42.9.0/24 --public-ip=192.0.2.9", "leases release 10.42.7.0/24", "leases release 10.42.9.0/24",
	} {
		if out, errs, code := b.types(strings.Fields(args)...); code != 0 {
			t.Errorf("%s: exit code %d, %s%s", args, code, out, errs)
		}
	}
	var seen []string
	for range 6 {
		e := b.event(from)
		from = e.Node.ModifiedIndex + 1
		key := filepath.Base(e.Node.Key)
		if e.Action != "expire" && !readByOriginals(key, e.Node.Value) {
			t.Errorf("%s of %s: %q", e.Action, key, e.Node.Value)
		}
		seen = append(seen, e.Action+" "+key)
	}
	slices.Sort(seen)
	want := []string{
		"compareAndSwap 10.42.7.0-24", "compareAndSwap 10.42.7.0-24", "compareAndSwap 10.42.9.0-24",
		"create 10.42.9.0-24", "expire 10.42.7.0-24", "expire 10.42.9.0-24",
	}
	if !slices.Equal(seen, want) {
		t.Errorf("events %q, want %q", seen, want)
	}
}

// v2Event is an event of the v2 API.
type v2Event struct {
	Action string
	Node   struct {
		Key, Value    string
		ModifiedIndex uint64
	}
}

// event returns the first event of a lease at an index or after it, which it waits for.
func (b *operatorBed) event(index uint64) (e v2Event) {
	b.Helper()
	_, body := b.get(fmt.Sprintf("/subnets?recursive=true&wait=true&waitIndex=%d", index))
	if err := json.Unmarshal(body, &e); err != nil {
		b.Fatal(err)
	}
	return e
}

// index returns the index after the last event.
func (b *operatorBed) index() uint64 {
	b.Helper()
	header, _ := b.get("/config")
	n, err := strconv.ParseUint(header.Get("X-Etcd-Index"), 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return n + 1
}

// get asks the v2 API for a key.
func (b *operatorBed) get(key string) (http.Header, []byte) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, b.server.URL+"/v2/keys"+defaultPrefix+key, nil)
	if err != nil {
		b.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		b.Fatal(err)
	}
	return resp.Header, body
}
