package machine

import (
	"context"
	"os/exec"
	"strings"

	"flanneld/pkg/lab/cache"
)

// Debian's suites that hosts are made of.
const (
	Bookworm = "bookworm" // 12
	Trixie   = "trixie"   // 13
)

// packages are what a host has: systemd, docker, the packet filters, and tools that tests use.
const packages = "systemd,systemd-sysv,dbus,docker.io,iptables,nftables,iproute2,iputils-ping,procps,busybox-static"

// firewalls are what a host has beside them that has firewalls. They are there, but not started. python3-nftables is
// what firewalld writes nftables by.
const firewalls = ",firewalld,python3-nftables,ufw"

// Kind says what a root file system holds.
type Kind struct {
	Suite     string
	Firewalls bool // firewalld and ufw are installed
}

// arguments of mmdebstrap, beside the suite, the place and the mirrors. What nobody reads on a host of the test is left
// out.
func (k Kind) arguments() []string {
	packages := packages
	if k.Suite != Bookworm {
		packages += ",docker-cli" // no longer part of docker.io
	}
	var hooks []string
	if k.Firewalls {
		packages += firewalls
		hooks = []string{`--customize-hook=systemctl --root="$1" disable firewalld ufw`}
	}
	return append(hooks,
		"--quiet", "--variant=essential", "--format=directory", "--include="+packages,
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-include=/usr/share/doc/flanneld*", "--dpkgopt=path-exclude=/usr/share/man/*",
		"--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=path-exclude=/usr/share/i18n/*",
		"--dpkgopt=force-unsafe-io",
	)
}

// Root returns the directory of the root file system of a host with docker.
func Root(ctx context.Context, say func(string)) (string, error) {
	return RootOf(ctx, Kind{Suite: Bookworm}, say)
}

// RootOf returns the directory of a Debian root file system, which the package cache keeps. say is told when it has to be
// made, which takes a minute.
func RootOf(ctx context.Context, k Kind, say func(string)) (string, error) {
	recipe := k.Suite + strings.Join(k.arguments(), "\n")
	return cache.Dir(k.Suite, recipe, func(dir string) { say("making a root file system in " + dir) }, func(dir string) error {
		args := append(append(k.arguments(), k.Suite, dir), mirrors(ctx, k.Suite)...)
		_, err := command(exec.CommandContext(ctx, "mmdebstrap", args...))
		return err
	})
}

// mirrors returns this machine's own sources for the suite; without any, mmdebstrap knows one.
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
