package machine

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"flanneld/pkg/lab/cache"
)

// Debian's suites for root file systems.
const (
	Bookworm = "bookworm" // 12
	Trixie   = "trixie"   // 13
)

// Suite returns the suite that the environment variable SUITE names: Bookworm if it is not set.
func Suite() (string, error) {
	switch s := cmp.Or(os.Getenv("SUITE"), Bookworm); s {
	case Bookworm, Trixie:
		return s, nil
	default:
		return "", fmt.Errorf("SUITE: %q: must be %s or %s", s, Bookworm, Trixie)
	}
}

// packages are the packages of a host: systemd, docker, packet filters, and tools for tests.
const packages = "systemd,systemd-sysv,dbus,docker.io,iptables,nftables,iproute2,iputils-ping,procps,busybox-static"

// managers are the additional packages of a host whose firewall and devices other programs can
// manage. They are installed but not started. firewalld needs python3-nftables to write nftables.
const managers = ",firewalld,python3-nftables,ufw,network-manager"

// Kind describes a root file system.
type Kind struct {
	Suite    string
	Managers bool // firewalld, ufw and NetworkManager are installed
}

// arguments returns the arguments of mmdebstrap without suite, directory and mirrors. Documentation
// and translations are left out.
func (k Kind) arguments() []string {
	packages := packages
	if k.Suite != Bookworm {
		// No longer part of docker.io, and no longer needed by systemd, but by its services.
		packages += ",docker-cli,libkmod2"
	}
	var hooks []string
	if k.Managers {
		packages += managers
		hooks = []string{`--customize-hook=systemctl --root="$1" disable firewalld ufw NetworkManager`}
	}
	return append(hooks,
		"--quiet", "--variant=essential", "--format=directory", "--include="+packages,
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-include=/usr/share/doc/flanneld*", "--dpkgopt=path-exclude=/usr/share/man/*",
		"--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=path-exclude=/usr/share/i18n/*",
		"--dpkgopt=force-unsafe-io",
	)
}

// Root returns the directory of a root file system with docker, of the suite that Suite returns.
func Root(ctx context.Context, say func(string)) (string, error) {
	suite, err := Suite()
	if err != nil {
		return "", err
	}
	return RootOf(ctx, Kind{Suite: suite}, say)
}

// RootOf returns the directory of a Debian root file system, which the package cache keeps. It
// calls say if it has to be created, which takes a minute.
func RootOf(ctx context.Context, k Kind, say func(string)) (string, error) {
	recipe := k.Suite + strings.Join(k.arguments(), "\n")
	return cache.Dir(k.Suite, recipe, func(dir string) { say("making a root file system in " + dir) }, func(dir string) error {
		args := append(append(k.arguments(), k.Suite, dir), mirrors(ctx, k.Suite)...)
		_, err := command(exec.CommandContext(ctx, "mmdebstrap", args...))
		return err
	})
}

// mirrors returns this machine's own package sources for the suite. If there are none, mmdebstrap
// uses its default.
func mirrors(ctx context.Context, suite string) []string {
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "deb $(REPO_URI) $(RELEASE) $(COMPONENT)",
		"Created-By: Packages", "Origin: Debian").Output()
	if err != nil {
		return nil
	}
	var lines []string
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		if f := strings.Fields(line); len(f) == 4 && strings.HasPrefix(f[2], suite) && f[3] == "main" {
			lines = append(lines, line)
		}
	}
	return lines
}
