package iptables

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/firewall"
)

// fakes are commands that are shell scripts, which do not need root.
func fakes(t *testing.T, scripts map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, script := range scripts {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// fakeIPTables returns a directory with commands of one release.
func fakeIPTables(t *testing.T, version, save, restore string) string {
	t.Helper()
	return fakes(t, map[string]string{"iptables": version, "iptables-save": save, "iptables-restore": restore})
}

func fakeTables(t *testing.T, version, save, restore string) *Tables {
	t.Helper()
	tables, err := NewTools(time.Second).find(fakeIPTables(t, version, save, restore)+"/iptables", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return tables
}

const anyVersion = "echo iptables v1.8.9"

func TestMissing(t *testing.T) {
	t.Setenv("PATH", fakes(t, map[string]string{"iptables": "echo iptables v1.8.9"}))
	_, err := newTables(firewall.IPv4)
	if !firewall.Absent(err) || !errors.Is(err, exec.ErrNotFound) || !strings.Contains(err.Error(), "iptables-save") {
		t.Errorf("got %v", err)
	}
	if _, err = newTables(firewall.IPv6); !firewall.Absent(err) || !strings.Contains(err.Error(), "ip6tables") {
		t.Errorf("got %v", err)
	}
}

func TestVersions(t *testing.T) {
	for _, tt := range []struct {
		says                string
		legacy, randomPorts bool
		args                string
	}{
		{"iptables v1.4.21", true, false, "--noflush"},
		{"iptables v1.6.1", true, false, "--noflush"},
		{"iptables v1.6.2", true, true, "--noflush --wait=5"},
		{"iptables v1.10.0 (legacy)", true, true, "--noflush --wait=5"},
		{"iptables v1.8.9 (legacy)", true, true, "--noflush --wait=5"},
		{"iptables v1.8.11 (nf_tables)", false, true, "--noflush --wait=5"},
	} {
		tables := fakeTables(t, "echo '"+tt.says+"'; echo more", "", "")
		if tables.version != tt.says || tables.legacy() != tt.legacy || tables.randomPorts != tt.randomPorts ||
			strings.Join(tables.restoreArgs, " ") != tt.args {
			t.Errorf("%s: got %+v", tt.says, tables)
		}
	}
	for version, want := range map[string]string{
		"echo; exit 3":         "exit status 3",
		"echo nothing":         "version",
		"echo iptables v1.8.x": "version",
		// The second time that it is asked.
		"[ -e $0.asked ] && exec sleep 60; >$0.asked; echo iptables v1.8.9": "no end after 1s",
		"exec sleep 60":        "no end after 1s",
		"sleep 5 & echo later": "WaitDelay",
	} {
		patience := time.Minute
		if strings.HasPrefix(want, "no end") {
			patience = time.Second
		}
		dir := fakeIPTables(t, version, "", "")
		if _, err := NewTools(time.Second).find(dir+"/iptables", patience); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", version, err)
		}
	}
}

// TestFailures: commands fail in every way. None takes long, and each error contains the command's
// message.
func TestFailures(t *testing.T) {
	for _, tt := range []struct {
		name, save, restore, want string
	}{
		{"listing fails", "echo no memory >&2; exit 1", "", "iptables-save: exit status 1: no memory"},
		{"listing hangs", "echo '*nat'; exec sleep 60", "", "iptables-save: no end after 1s"},
		{"listing without end", "exec yes", "", "iptables-save: too much output"},
		{"garbage", "head -c 100000 /dev/zero", "", "not understood"},
		{"half a listing", "echo '*nat'", "", "incomplete"},
		{"writing fails", "", "cat >/dev/null; echo line 3 failed >&2; exit 1", "iptables-restore: exit status 1: line 3 failed"},
		{"writing fails unread", "", "echo 'Another app holds\n the lock.' >&2; exit 4", "exit status 4: Another app holds the lock."},
		{"writing says much", "", "yes | head -c 10000000 >&2; exit 1", "exit status 1: y y"},
		{"writing does nothing", "", "cat >/dev/null", "not as written"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tables := fakeTables(t, anyVersion, tt.save, tt.restore)
			if strings.Contains(tt.want, "no end") {
				tables.timeout = time.Second
			}
			_, err := tables.Sync(t.Context(), oneDaemon(), everything(four))
			if err == nil || !strings.Contains(err.Error(), tt.want) || len(err.Error()) > 2*maxStderr {
				t.Errorf("got %.1000v", err)
			}
		})
	}
}

func TestCancelled(t *testing.T) {
	tables := fakeTables(t, anyVersion, "exec sleep 60", "")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := tables.Sync(ctx, oneDaemon(), nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// TestNotExecutable is a failure, not an absence, although a search in PATH reports the command as
// missing.
func TestNotExecutable(t *testing.T) {
	dir := fakeIPTables(t, anyVersion, "", "")
	t.Setenv("PATH", filepath.Join(dir, "no-such-directory")+":"+filepath.Join(dir, "iptables")+":"+dir)
	if err := os.Chmod(filepath.Join(dir, "iptables-restore"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{dir + "/iptables", "iptables"} {
		if _, err := NewTools(time.Second).find(name, time.Second); !errors.Is(err, fs.ErrPermission) || firewall.Absent(err) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// TestCommandsThatAreReplacedOrRemoved: a command that was found and removed is absent.
func TestCommandsThatAreReplacedOrRemoved(t *testing.T) {
	dir := fakeIPTables(t, anyVersion, "", "")
	t.Setenv("PATH", dir)
	tables, err := newTables(firewall.IPv4)
	if err != nil {
		t.Fatal(err)
	}
	save := filepath.Join(dir, "iptables-save")
	for _, step := range []struct {
		what     string
		do       func() error
		replaced bool
	}{
		{"nothing", func() error { return nil }, false},
		{"renamed", func() error { return os.Rename(save, save+".old") }, true},
		{"renamed back", func() error { return os.Rename(save+".old", save) }, false},
		{"another file of its name", func() error {
			return errors.Join(os.Rename(save, save+".old"), os.WriteFile(save, []byte("#!/bin/sh\n"), 0o700))
		}, true},
		{"removed", func() error { return os.Remove(save) }, true},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		if got := tables.replaced(); got != step.replaced {
			t.Errorf("%s: replaced: %t", step.what, got)
		}
	}
	if _, err := tables.Sync(t.Context(), oneDaemon(), nil); !firewall.Absent(err) {
		t.Errorf("got %v", err)
	}
}

func TestHoldersOfLocks(t *testing.T) {
	dev := unix.Mkdev(8, 26)
	for line, want := range map[string]int{
		"1: FLOCK  ADVISORY  WRITE 708 08:1a:279 0 EOF":    708,
		"1: FLOCK  ADVISORY  WRITE 708 08:1a:2790 0 EOF":   0,
		"1: FLOCK  ADVISORY  WRITE 708 08:02:279 0 EOF":    0,
		"1: -> FLOCK  ADVISORY  WRITE 709 08:1a:279 0 EOF": 0,
		"2: POSIX  ADVISORY  WRITE 708 08:1a:279 0 EOF":    0,
		"3: FLOCK  ADVISORY  WRITE -1 08:1a:279 0 EOF":     0,
		"3: FLOCK  ADVISORY  WRITE x 08:1a:279 0 EOF":      0,
		"3: FLOCK": 0,
		"":         0,
	} {
		if got := flockHolder(line, dev, 279); got != want {
			t.Errorf("%q: %d", line, got)
		}
	}
}
