package vm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// initScript is the first process of a guest. Its own output goes to the kernel's console. The
// output of the script, followed by its exit code, goes to the second serial port.
const initScript = `#!/bin/sh
PATH=/usr/sbin:/usr/bin:/sbin:/bin:/busybox
HOME=/root
export PATH HOME
/bin/busybox mkdir -p /proc /sys /dev /run /tmp /root /busybox
/bin/busybox --install -s /busybox
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
ip link set lo up
# On a host, udev makes these.
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr
modprobe tun
stty -F /dev/ttyS1 raw
sh /script >/dev/ttyS1 2>&1 </dev/null
printf '\n%s %d\n' "$EXIT" $? >/dev/ttyS1
# Not before everything is sent.
stty -F /dev/ttyS1 cooked
reboot -f
`

// exitWord starts the last line of a guest's output. The exit code of the script follows.
const exitWord = "vm-script-exit"

// kernelArguments are the arguments of the guest's kernel. The emulator ends with the guest, also
// after a panic.
const kernelArguments = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr EXIT=" + exitWord

// Run boots the image with additional files and runs a shell script as root. files is a directory
// whose content is added to the root file system; it must not contain files named init and script.
// line is called with each line of the output. Run returns the script's exit code. If the guest
// ends before the script, the error contains the end of the kernel's log.
func (i *Image) Run(ctx context.Context, files, script string, line func(string)) (int, error) {
	work, err := os.MkdirTemp("", "flanneld-vm-")
	if err != nil {
		return 0, fmt.Errorf("make a directory for a guest: %w", err)
	}
	defer os.RemoveAll(work)
	initrd, console := filepath.Join(work, "initrd"), filepath.Join(work, "console")
	if err := i.initrd(ctx, initrd, files, script); err != nil {
		return 0, fmt.Errorf("make the file system of a guest: %w", err)
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-accel", "tcg,thread=multi", "-smp", fmt.Sprint(min(runtime.NumCPU(), 2)), "-m", "2G",
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-serial", "file:"+console, "-serial", "stdio",
		"-kernel", filepath.Join(i.dir, "kernel"), "-initrd", initrd, "-append", kernelArguments)
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	// The kernel sends the signal when the thread that has started the guest ends, not the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start the emulator: %w", err)
	}
	code, err := follow(out, line)
	if err = errors.Join(err, cmd.Wait(), ctx.Err()); err != nil {
		log, _ := os.ReadFile(console)
		return 0, fmt.Errorf("%w\nthe emulator said:\n%s\nthe kernel's log ends with:\n%s", err, &complaint, log[max(0, len(log)-4096):])
	}
	return code, nil
}

// follow reads a guest's output to its end.
func follow(out io.Reader, line func(string)) (code int, err error) {
	err = errors.New("the guest ended before the script")
	scan := bufio.NewScanner(out)
	scan.Buffer(nil, 1<<20)
	for scan.Scan() {
		if value, ok := strings.CutPrefix(scan.Text(), exitWord+" "); ok {
			_, err = fmt.Sscan(value, &code)
			continue
		}
		line(scan.Text())
	}
	return code, errors.Join(err, scan.Err())
}

// archive is a shell script. Its arguments are the image, the file to write, and the directories to
// add.
const archive = `
out=$1
cp "$0/root" "$out"
shift
for dir; do
	cd "$dir"
	"$0/busybox" find . | "$0/busybox" cpio -o -H newc -R 0:0 >>"$out"
done
`

// initrd writes the image's file system, followed by the guest's additional files: the kernel
// unpacks several archives in order.
func (i *Image) initrd(ctx context.Context, path, files, script string) error {
	own := filepath.Join(filepath.Dir(path), "own")
	if err := os.Mkdir(own, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(own, "init"), []byte(initScript), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(own, "script"), []byte(script), 0o644); err != nil {
		return err
	}
	return command(ctx, "", "sh", "-ec", archive, i.dir, path, own, files)
}
