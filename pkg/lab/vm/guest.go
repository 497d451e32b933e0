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

// initScript is the first process of a guest. Its own output goes to the kernel's
// console, that of the script to the second serial port, and the script's exit code
// after it.
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

// exitWord begins the line that ends a guest's output; after it comes the exit code of the script.
const exitWord = "vm-script-exit"

// arguments of the guest's kernel. What ends the guest, a panic too, ends the emulator.
const kernelArguments = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr EXIT=" + exitWord

// Run boots the image, with the files of a directory added to its root file system, and runs the shell script
// there as root. Each line of its output is given to line as it comes. The result is the script's exit code; a guest
// that ends before the script is an error, with the end of the kernel's log in it. The directory must not have files named
// init and script.
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
	// The signal comes when the thread that has started the guest ends, not the process.
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

// archive is a shell script; its arguments are an image, the file to write, and the directories to add.
const archive = `
out=$1
cp "$0/root" "$out"
shift
for dir; do
	cd "$dir"
	"$0/busybox" find . | "$0/busybox" cpio -o -H newc -R 0:0 >>"$out"
done
`

// initrd writes the image's file system and then what this guest has more: the kernel unpacks archives one after another.
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
