package doctor

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"flanneld/pkg/presence"
)

// Files are what files say of other programs and of the kernel's modules.
type Files struct {
	Programs []string // of those in watched, that run in this network namespace
	UFW      bool     // enabled
	Modules  []string // of those in wanted, that are built in, loaded or can be loaded
	NoList   error    // why the kernel's modules are not known
}

// Programs that manage devices or packet filter rules, by the name of their process, which has at
// most 15 bytes.
const (
	firewalldProgram = "firewalld"
	networkdProgram  = "systemd-network"
	nmProgram        = "NetworkManager"
)

// wantedModules are the modules of the kernel that some backends or packet filters need.
func wantedModules() []string { return []string{"vxlan", "tun", "nf_tables", "ip_tables"} }

// maxState limits how much of a file is read.
const maxState = 8 << 20

func readFiles(ctx context.Context) (f Files, err error) {
	if f.Programs, err = runningPrograms(ctx, []string{firewalldProgram, networkdProgram, nmProgram}); err != nil {
		return f, err
	}
	conf, err := readStart("/etc/ufw/ufw.conf", maxState)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	f.UFW = setting(conf, "ENABLED") == "yes"
	f.Modules, f.NoList = knownModules()
	return f, nil
}

// runningPrograms returns those of the programs that run in this network namespace.
func runningPrograms(ctx context.Context, wanted []string) (found []string, err error) {
	here, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for i, dir := range dirs {
		if ctx.Err() != nil || i > maxProcesses {
			return nil, fmt.Errorf("too many processes: %d", len(dirs))
		}
		comm, _ := readStart(filepath.Join(dir, "comm"), 64)
		name := strings.TrimSpace(string(comm))
		if !slices.Contains(wanted, name) || slices.Contains(found, name) {
			continue
		}
		if ns, err := os.Readlink(filepath.Join(dir, "ns/net")); err == nil && ns == here {
			found = append(found, name)
		}
	}
	return found, nil
}

// knownModules returns those of the wanted modules that are loaded, built in, or in the kernel's
// directory of modules.
func knownModules() (found []string, err error) {
	release, err := readStart("/proc/sys/kernel/osrelease", 256)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join("/lib/modules", strings.TrimSpace(string(release)))
	loaded, _ := readStart("/proc/modules", maxState)
	builtin, err := readStart(filepath.Join(dir, "modules.builtin"), maxState)
	loadable, err2 := readStart(filepath.Join(dir, "modules.dep"), maxState)
	return modulesIn(loaded, builtin, loadable), errors.Join(err, err2)
}

// modulesIn returns the wanted modules that are in /proc/modules, modules.builtin or modules.dep.
func modulesIn(loaded, builtin, loadable []byte) (found []string) {
	for _, name := range wantedModules() {
		has := false
		lines := bufio.NewScanner(bytes.NewReader(loaded))
		for lines.Scan() {
			has = has || strings.HasPrefix(lines.Text(), name+" ")
		}
		// modules.builtin has vxlan.ko, and modules.dep may have vxlan.ko.xz before the colon.
		for _, list := range [][]byte{builtin, loadable} {
			for line := range bytes.Lines(list) {
				file, _, _ := bytes.Cut(bytes.TrimSpace(line), []byte(":"))
				base := filepath.Base(string(file))
				has = has || strings.HasPrefix(base, name+".ko") || strings.HasPrefix(base, strings.ReplaceAll(name, "_", "-")+".ko")
			}
		}
		if has {
			found = append(found, name)
		}
	}
	return found
}

// setting returns the value of a NAME=VALUE line.
func setting(file []byte, name string) (value string) {
	for line := range bytes.Lines(file) {
		key, v, has := strings.Cut(strings.TrimSpace(string(line)), "=")
		if has && strings.TrimSpace(key) == name {
			value = strings.Trim(strings.TrimSpace(v), `"'`)
		}
	}
	return value
}

// otherNetworks returns the networks of other daemons on this host.
func otherNetworks(network netip.Prefix) (all []netip.Prefix, err error) {
	daemons, err := presence.Daemons()
	for _, d := range daemons {
		if d.Network != network {
			all = append(all, d.Network)
		}
	}
	return all, err
}
