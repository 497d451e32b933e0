package vm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"flanneld/pkg/lab/cache"
)

// Suite returns the Debian release with a kernel version.
func Suite(kernel string) (release string, ok bool) {
	switch kernel {
	case "6.1":
		return "bookworm", true
	case "5.10":
		return "bullseye", true
	}
	return "", false
}

// packages are the packages of a guest. tiny-initramfs replaces the initramfs tools that the
// kernel's package depends on, which are large.
const packages = "linux-image-amd64,tiny-initramfs,iptables,nftables,iproute2,dash,busybox-static"

// pack creates the two files of an image from the unpacked packages, with the busybox among them.
// Packages are only unpacked, so pack creates what their scripts would create: the list of modules
// in the form for busybox's modprobe, the shell, and the iptables that Debian prefers. The shell is
// not busybox's, which would use its own ip instead of the real one.
const pack = `
version=$(ls lib/modules)
bin/busybox depmod -b . "$version"
ln -sf /bin/busybox sbin/modprobe
ln -sf dash bin/sh
for family in iptables ip6tables; do
	for does in "" -save -restore; do ln -sf xtables-nft-multi usr/sbin/$family$does; done
done
cp boot/vmlinuz-"$version" "$1/kernel"
cp bin/busybox "$1/busybox"
rm -r boot
bin/busybox find . | bin/busybox cpio -o -H newc -R 0:0 >"$1/root"
`

// An Image is a kernel and the root file system of a Debian release.
type Image struct {
	dir string // has the files kernel, root (an archive) and busybox, which also runs on this machine
}

// NewImage returns the image of a release, which the package cache keeps. mirror is the package
// mirror; if it is empty, this machine's own is used. NewImage calls say if the image has to be
// created, which takes half a minute.
func NewImage(ctx context.Context, suite, mirror string, say func(string)) (*Image, error) {
	recipe := suite + pack + strings.Join(arguments(), "\n")
	dir, err := cache.Dir(suite+"-kernel", recipe, func(dir string) { say("making " + dir) }, func(dir string) error {
		return makeImage(ctx, dir, suite, mirror)
	})
	if err != nil {
		return nil, fmt.Errorf("image of %s: %w", suite, err)
	}
	return &Image{dir}, nil
}

func makeImage(ctx context.Context, dir, suite, mirror string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	tree, err := os.MkdirTemp("", "flanneld-vm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tree)
	if mirror == "" {
		mirror = ownMirror(ctx)
	}
	args := append(arguments(), suite, tree)
	if mirror != "" {
		args = append(args, mirror)
	}
	if err := command(ctx, "", "mmdebstrap", args...); err != nil {
		return err
	}
	return command(ctx, tree, "sh", "-ec", pack, "sh", dir)
}

// arguments returns the arguments of mmdebstrap without directory and mirror. Packages are unpacked
// and not installed.
func arguments() []string {
	args := []string{
		"--quiet", "--variant=extract", "--format=directory", "--include=" + packages,
		"--dpkgopt=path-exclude=/lib/modules/*/kernel/*", "--dpkgopt=path-exclude=/boot/System.map*",
		"--dpkgopt=path-exclude=/usr/share/*", "--dpkgopt=path-exclude=/usr/lib/*/gconv/*",
	}
	// The kernel's modules of a guest, below kernel/.
	for _, m := range []string{
		"net/*", "lib/*", "crypto/*", "arch/x86/crypto/*",
		"drivers/net/vxlan*", "drivers/net/wireguard/*", "drivers/net/dummy.ko", "drivers/net/bonding/*", "drivers/net/tun.ko", "drivers/net/veth.ko",
	} {
		args = append(args, "--dpkgopt=path-include=/lib/modules/*/kernel/"+m)
	}
	return args
}

// ownMirror returns the mirror of this machine's own release, or an empty string. mmdebstrap then
// uses its default.
func ownMirror(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(COMPONENT)",
		"Created-By: Packages", "Origin: Debian", "Label: Debian").Output()
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) == 3 && f[2] == "main" && !strings.Contains(f[1], "-") {
			return f[0]
		}
	}
	return ""
}
