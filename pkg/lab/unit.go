package lab

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A Unit contains the restrictions of a systemd service that can be applied without systemd:
// capabilities, no_new_privs, a seccomp filter and read-only mounts.
type Unit struct {
	Capabilities uint64   // bounding set, as a mask
	NoNewPrivs   bool     // NoNewPrivileges=
	Files        uint64   // LimitNOFILE=; 0: unchanged
	ReadOnly     bool     // ProtectSystem=strict: read-only except /dev, /proc, /sys and Writable
	Tunables     bool     // ProtectKernelTunables=: /sys and /proc/sys are read-only too
	HideProcs    bool     // ProtectProc=invisible
	Writable     []string // RuntimeDirectory= and ReadWritePaths=
	NoNamespaces bool     // RestrictNamespaces=
	Mmap         uint32   // number of mmap(2), for MemoryDenyWriteExecute=; 0: allowed
	Families     []uint32 // RestrictAddressFamilies=
	Syscalls     []uint32 // SystemCallFilter=: the allowed ones
}

// notEnforced are the settings of a service that restrict nothing, or cannot be applied here:
// PrivateTmp= would hide the lab's own directory, DevicePolicy= needs a cgroup, and the others
// forbid what the capabilities or the system calls forbid anyway. "make test-system" runs the unit
// with all of them.
const notEnforced = "Type Environment EnvironmentFile ExecStart ExecStartPre SyslogIdentifier TimeoutStartSec Restart RestartSec " +
	"WatchdogSec FileDescriptorStoreMax RuntimeDirectoryPreserve ProtectHome PrivateTmp PrivateMounts ReadOnlyPaths ProtectKernelModules " +
	"ProtectKernelLogs ProtectControlGroups ProtectClock ProtectHostname DevicePolicy DeviceAllow RestrictRealtime RestrictSUIDSGID " +
	"LockPersonality UMask SystemCallArchitectures SystemCallErrorNumber"

// ReadUnit reads a unit file. An unknown setting is an error. The groups of system calls are taken
// from systemd-analyze, their numbers from golang.org/x/sys.
func ReadUnit(path string) (*Unit, error) {
	settings, err := readService(path)
	if err != nil {
		return nil, fmt.Errorf("read unit: %w", err)
	}
	u := &Unit{}
	for _, s := range settings {
		if err := u.set(s.key, s.value); err != nil {
			return nil, fmt.Errorf("%s: %s=%s: %w", path, s.key, s.value, err)
		}
	}
	if u.Syscalls == nil || u.Families == nil || u.Capabilities == 0 {
		return nil, fmt.Errorf("%s restricts no capabilities, system calls or address families", path)
	}
	return u, nil
}

// here returns the unit for a host of the lab, whose directory for subnet.env and lock of iptables
// replace those in /run. It creates both, as systemd and ExecStartPre= do.
func (u *Unit) here(runtimeDir, lock string) (*Unit, error) {
	if err := os.MkdirAll(runtimeDir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(lock, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	f.Close()
	on := *u
	on.Writable = nil
	for _, path := range u.Writable {
		switch path {
		case "/run/flannel":
			path = runtimeDir
		case "/run/xtables.lock":
			path = lock
		}
		on.Writable = append(on.Writable, path)
	}
	if coverage := os.Getenv("GOCOVERDIR"); coverage != "" {
		on.Writable = append(on.Writable, coverage)
	}
	return &on, nil
}

type setting struct{ key, value string }

// readService reads the section Service of a unit file (systemd.syntax(7)).
func readService(path string) ([]setting, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []setting
	section, whole := "", ""
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line, more := strings.CutSuffix(lines.Text(), `\`)
		if whole += line; more {
			continue
		}
		line, whole = strings.TrimSpace(whole), ""
		switch key, value, ok := strings.Cut(line, "="); {
		case line == "" || strings.ContainsAny(line[:1], "#;"):
		case line[0] == '[':
			section = line
		case ok && section == "[Service]":
			all = append(all, setting{strings.TrimSpace(key), strings.TrimSpace(value)})
		}
	}
	return all, lines.Err()
}

// set applies one setting. Settings that are given several times accumulate.
func (u *Unit) set(key, value string) (err error) {
	words := strings.Fields(value)
	yes := value == "yes" || value == "true"
	switch key {
	case "CapabilityBoundingSet":
		capabilities := map[string]int{"CAP_DAC_READ_SEARCH": unix.CAP_DAC_READ_SEARCH, "CAP_NET_ADMIN": unix.CAP_NET_ADMIN, "CAP_NET_RAW": unix.CAP_NET_RAW}
		for _, name := range words {
			number, ok := capabilities[name]
			if !ok {
				return fmt.Errorf("%s is unknown here", name)
			}
			u.Capabilities |= 1 << number
		}
	case "NoNewPrivileges":
		u.NoNewPrivs = yes
	case "LimitNOFILE":
		u.Files, err = strconv.ParseUint(value, 10, 64)
	case "ProtectSystem":
		u.ReadOnly = value == "strict"
	case "ProtectKernelTunables":
		u.Tunables = yes
	case "ProtectProc":
		u.HideProcs = value == "invisible"
	case "RuntimeDirectory":
		u.Writable = append(u.Writable, filepath.Join("/run", value))
	case "ReadWritePaths":
		for _, path := range words {
			u.Writable = append(u.Writable, strings.TrimPrefix(path, "-"))
		}
	case "RestrictNamespaces":
		u.NoNamespaces = yes
	case "MemoryDenyWriteExecute":
		if numbers, failed := syscallNumbers(); yes {
			u.Mmap, err = cmp.Or(numbers["mmap2"], numbers["mmap"]), failed
		}
	case "RestrictAddressFamilies":
		families := map[string]uint32{"AF_UNIX": unix.AF_UNIX, "AF_INET": unix.AF_INET, "AF_INET6": unix.AF_INET6, "AF_NETLINK": unix.AF_NETLINK}
		for _, name := range words {
			number, ok := families[name]
			if !ok {
				return fmt.Errorf("%s is unknown here", name)
			}
			u.Families = append(u.Families, number)
		}
	case "SystemCallFilter":
		err = u.filter(words)
	default:
		if !slices.Contains(strings.Fields(notEnforced), key) {
			return errors.New("neither imposed nor left out on purpose: see pkg/lab")
		}
	}
	return err
}

// filter applies one SystemCallFilter=: the first one allows system calls, one that starts with a
// tilde removes some.
func (u *Unit) filter(words []string) error {
	numbers, err := syscallNumbers()
	if err != nil {
		return err
	}
	first, remove := strings.CutPrefix(words[0], "~")
	for _, name := range append([]string{first}, words[1:]...) {
		names, err := syscallGroup(name)
		if err != nil {
			return err
		}
		for _, name := range names {
			n, ok := numbers[name]
			switch {
			case !ok: // exists on other architectures only
			case remove:
				u.Syscalls = slices.DeleteFunc(u.Syscalls, func(o uint32) bool { return o == n })
			case !slices.Contains(u.Syscalls, n):
				u.Syscalls = append(u.Syscalls, n)
			}
		}
	}
	return nil
}

// syscallGroup returns the system calls of a group, or the name itself if it is a system call.
func syscallGroup(name string) ([]string, error) {
	if !strings.HasPrefix(name, "@") {
		return []string{name}, nil
	}
	out, err := exec.Command("systemd-analyze", "--no-pager", "syscall-filter", name).Output()
	if err != nil {
		return nil, fmt.Errorf("ask systemd for %s: %w", name, err)
	}
	var all []string
	for i, line := range strings.Split(string(out), "\n") {
		line = strings.TrimSpace(line)
		if i == 0 || line == "" || line[0] == '#' {
			continue
		}
		names, err := syscallGroup(line)
		if err != nil {
			return nil, err
		}
		all = append(all, names...)
	}
	return all, nil
}

// syscallNumbers returns the system call numbers of this architecture in golang.org/x/sys.
func syscallNumbers() (map[string]uint32, error) {
	out, err := exec.Command("go", "list", "-f", "{{.Dir}}", "golang.org/x/sys/unix").Output()
	if err != nil {
		return nil, fmt.Errorf("find golang.org/x/sys: %w", err)
	}
	text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), "zsysnum_linux_"+runtime.GOARCH+".go"))
	if err != nil {
		return nil, err
	}
	numbers := map[string]uint32{}
	for _, m := range regexp.MustCompile(`\sSYS_(\w+)\s*=\s*(\d+)`).FindAllStringSubmatch(string(text), -1) {
		n, err := strconv.ParseUint(m[2], 10, 32)
		if err != nil {
			return nil, err
		}
		numbers[strings.ToLower(m[1])] = uint32(n)
	}
	return numbers, nil
}
