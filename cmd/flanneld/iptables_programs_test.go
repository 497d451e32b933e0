package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// linkIPTables creates links in a directory to the commands of a variant of iptables, under names
// that begin with as. An existing link is replaced atomically, as by package managers.
func linkIPTables(t *testing.T, dir, variant, as string) {
	t.Helper()
	for _, does := range []string{"", "-save", "-restore"} {
		path, err := exec.LookPath("iptables-" + variant + does)
		if err != nil {
			t.Skipf("needs the %s variant of iptables: %v", variant, err)
		}
		link := filepath.Join(dir, as+does)
		if err := errors.Join(os.Symlink(path, link+".new"), os.Rename(link+".new", link)); err != nil {
			t.Fatal(err)
		}
	}
}

// variantPath returns a PATH with only the programs of iptables; those without a variant in their
// names are of this variant, or absent.
func variantPath(t *testing.T, variant string) string {
	t.Helper()
	dir := t.TempDir()
	if variant != "" {
		linkIPTables(t, dir, "nft", "iptables-nft")
		linkIPTables(t, dir, "legacy", "iptables-legacy")
		linkIPTables(t, dir, variant, "iptables")
	}
	return dir
}

// pathWith is this process's PATH, in which the iptables without a variant in its name is of this
// one.
func pathWith(t *testing.T, variant string) string {
	t.Helper()
	dir := t.TempDir()
	linkIPTables(t, dir, variant, "iptables")
	return dir + ":" + os.Getenv("PATH")
}

// faultyIPTables is a PATH with iptables commands that fail on demand.
type faultyIPTables struct {
	t        *testing.T
	dir, how string
}

func newFaultyIPTables(t *testing.T) *faultyIPTables {
	t.Helper()
	dir := t.TempDir()
	return &faultyIPTables{t, dir, filepath.Join(dir, "how")}
}

var iptablesCommands = []string{"iptables", "iptables-save", "iptables-restore"}

// be makes the commands healthy, or sets a fault by name.
func (f *faultyIPTables) be(how string) {
	f.t.Helper()
	must := func(err error) {
		f.t.Helper()
		if err != nil {
			f.t.Fatal(err)
		}
	}
	must(os.WriteFile(f.how, []byte(how), 0o600))
	for _, name := range iptablesCommands {
		path := filepath.Join(f.dir, name)
		if how == "absent" {
			must(os.RemoveAll(path))
			continue
		}
		mode := os.FileMode(0o700)
		if how == "not executable" && name == "iptables-restore" {
			mode = 0o600
		}
		if _, err := os.Stat(path); err != nil {
			real, err := exec.LookPath(strings.Replace(name, "iptables", "iptables-nft", 1))
			must(err)
			// Renamed into place, as package managers do.
			must(os.WriteFile(path+".new", fmt.Appendf(nil, "#!/bin/sh\nread how <%s\ncase $how in slow) /bin/sleep 5;; hangs) exec /bin/sleep 60;; fails) echo broken >&2; exit 111;; esac\nexec %s \"$@\"\n", f.how, real), mode))
			must(os.Rename(path+".new", path))
		}
		must(os.Chmod(path, mode))
	}
}
