package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/etcdkeys"
	"flanneld/pkg/lab/etcdtest"
)

// An operatorBed has an etcd, and what an operator types.
type operatorBed struct {
	*testing.T
	server *etcdtest.Etcd
	keys   etcdkeys.Store // of the API of the network
	env    []string
	stdin  io.Reader

	subnetFile string
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
	file := filepath.Join(t.TempDir(), "subnet.env")
	return &operatorBed{t, server, server.Store(t, api), []string{
		"FLANNELD_ETCD_ENDPOINTS=" + server.URL, "FLANNELD_SUBNET_FILE=" + file,
	}, strings.NewReader(""), file}
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
			{"root writes", "root", password, "config set --yes", 0, ""},
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

// runs runs a command of flanneld on a host, and returns what it prints and its exit code.
func (c *cluster) runs(h *lab.Host, env []string, args ...string) (said string, code int) {
	c.t.Helper()
	p, err := h.Run(lab.Command{Args: args, Env: env})
	c.must(err)
	code, err = p.Wait(c.ctx)
	c.must(err)
	return p.Logs(), code
}

// unwritable is an output that fails.
type unwritable struct{ error }

func (u unwritable) Write([]byte) (int, error) { return 0, u.error }

// TestOutputThatCannotBeWritten: it is not taken for an etcd that does not answer, a reader that has
// gone is no message, and a change that was made is a success.
func TestOutputThatCannotBeWritten(t *testing.T) {
	b := newOperatorBed(t, "v3", etcdtest.StartEtcd(t))
	b.put("config", vxlanConfig, 0)
	for _, c := range []struct {
		args string
		code int
	}{
		{"config get", operatorRefused}, {"config check", operatorRefused}, {"config check -", operatorRefused},
		{"leases list", operatorRefused}, {"leases list --json", operatorRefused}, {"config set --yes -", 0},
		{"leases reserve 10.42.9.0/24 -public-ip=192.0.2.9", 0}, {"leases release 10.42.9.0/24 --yes --json", 0},
	} {
		for _, err := range []error{syscall.EPIPE, syscall.ENOSPC} {
			var errs bytes.Buffer
			in := &invocation{t.Context(), b.env, strings.NewReader(vxlanConfig), unwritable{err}, &errs}
			want := ""
			if c.code != 0 && err == syscall.ENOSPC {
				want = "flanneld " + strings.Join(strings.Fields(c.args)[:2], " ") + ": no space left on device\n"
			}
			if code := runSubcommand(in, strings.Fields(c.args)); code != c.code || errs.String() != want && c.code != 0 {
				t.Errorf("%s, %v: exit code %d, %q; want %d, %q", c.args, err, code, errs.String(), c.code, want)
			}
			if c.code == 0 {
				break // the second time, there is nothing to do
			}
		}
	}
}

// TestAnotherPrefixIsNamed: whoever forgets the prefix, or the API, is told where there is a network.
func TestAnotherPrefixIsNamed(t *testing.T) {
	eachOperator(t, func(t *testing.T, b *operatorBed, api string) {
		b.put("config", vxlanConfig, 0)
		for args, code := range map[string]int{"config get": operatorRefused, "config check": operatorRefused, "leases list": 0, "leases release 10.42.7.0/24": operatorRefused, "leases reserve 10.42.7.0/24 -public-ip=192.0.2.9": operatorRefused} {
			_, errs, got := b.types(append(strings.Fields(args), "-etcd-prefix=/x")...)
			want := "no network config at /x/config; there is one at " + defaultPrefix + "/config in the " + api + " API (-etcd-prefix, -etcd-api)\n"
			if got != code || !strings.HasSuffix(errs, want) {
				t.Errorf("%s: exit code %d, %q; want %d, %q", args, got, errs, code, want)
			}
		}
	})
}
