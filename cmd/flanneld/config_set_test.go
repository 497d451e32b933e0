package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/lab/etcdkeys"
	"flanneld/pkg/lab/etcdtest"
)

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

// TestConfigGetOnATerminal: what a terminal might interpret is escaped there, and only there.
func TestConfigGetOnATerminal(t *testing.T) {
	b := newOperatorBed(t, "v3", etcdtest.StartEtcd(t))
	b.put("config", "{\n\t\"Network\": \"\x1b[2J\"\n}", 0)
	if out, errs, code := b.types("config", "get"); code != 0 || out != "{\n\t\"Network\": \"\x1b[2J\"\n}\n" {
		t.Errorf("exit code %d, %q, %q", code, out, errs)
	}
	person, program := terminal(t)
	var errs bytes.Buffer
	code := runSubcommand(&invocation{t.Context(), b.env, program, program, &errs}, []string{"config", "get"})
	const want = "{\r\n    \\\"Network\\\": \\\"\\x1b[2J\\\"\r\n}\r\n"
	shown := make([]byte, len(want))
	if _, err := io.ReadFull(person, shown); code != 0 || err != nil || string(shown) != want {
		t.Errorf("exit code %d, %v, %q, %q", code, err, shown, &errs)
	}
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
