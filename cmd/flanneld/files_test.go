package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flanneld/pkg/lab"
)

// TestFilesAreRepaired: whatever people and programs do to subnet.env and the claim beside
// it, the running daemon's values are back within a second or two.
func TestFilesAreRepaired(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "flannel") // before the cluster, whose end it has to see
	c, h := oneHost(t, vxlanConfig)
	h.SubnetFile = filepath.Join(dir, "subnet.env")
	claim := h.SubnetFile + ".lease"
	c.start(h)
	read := func(path string) string {
		b, err := os.ReadFile(path)
		if err != nil {
			return err.Error()
		}
		return string(b)
	}
	env, noted := read(h.SubnetFile), read(claim)
	const user = "# mine\nDOCKER_OPTS=--bip=10.42.7.1/24\n"
	// At once, else the daemon may find the file empty, and replace it while it is written.
	write := func(path, content string) func() error {
		return func() error {
			return errors.Join(os.WriteFile(path+".new", []byte(content), 0o644), os.Rename(path+".new", path))
		}
	}
	for _, d := range []struct {
		name string
		do   func() error
		want string // of subnet.env
	}{
		{"rm subnet.env", func() error { return os.Remove(h.SubnetFile) }, env},
		{"rm the claim", func() error { return os.Remove(claim) }, env},
		{"rm -r of the directory", func() error { return os.RemoveAll(dir) }, env},
		{"mv of the directory", func() error { return os.Rename(dir, dir+".old") }, env},
		{": >subnet.env", func() error { return os.Truncate(h.SubnetFile, 0) }, env},
		{"nonsense in the claim", write(claim, "{"), env},
		{"another MTU", write(h.SubnetFile, strings.Replace(env, "1450", "9000", 1)), env},
		{"a subnet of another host", write(h.SubnetFile, "FLANNEL_SUBNET=10.42.250.1/24\n"), env},
		{"mk-docker-opts.sh -d subnet.env", write(h.SubnetFile, user), env + user},
		{"another value beside lines of others", write(h.SubnetFile, user+strings.Replace(env, "1450", "9000", 1)), env + user},
	} {
		c.must(d.do())
		took := c.within(3*time.Second, d.name, func() error {
			if now, claimed := read(h.SubnetFile), read(claim); now != d.want || claimed != noted {
				return fmt.Errorf("subnet.env is\n%sand the claim\n%s", now, claimed)
			}
			return nil
		})
		t.Logf("%-40s repaired after %v", d.name, took.Round(time.Millisecond))
	}

	// What others add is no damage: a later repair of the claim finds the file untouched.
	added := env + user + "X=1\n"
	c.must(write(h.SubnetFile, added)())
	file, err := os.Stat(h.SubnetFile)
	c.must(err)
	c.must(os.Remove(claim))
	c.within(3*time.Second, "the claim", func() error {
		if read(claim) != noted {
			return errors.New("it is not there")
		}
		return nil
	})
	if now, err := os.Stat(h.SubnetFile); err != nil || !os.SameFile(file, now) || read(h.SubnetFile) != added {
		t.Errorf("lines of others were taken for damage: %v\n%s", err, read(h.SubnetFile))
	}
	c.said(h.Flanneld(), 0, "restart docker")
}

// smallDisk is a file system with room for a few files.
type smallDisk struct {
	t   *testing.T
	dir string
}

// newSmallDisk mounts a small file system. It must be called before newCluster, because it must
// outlive the cluster.
func newSmallDisk(t *testing.T) smallDisk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts a file system; run it with sudo")
	}
	d := smallDisk{t, t.TempDir()}
	d.must(syscall.Mount("tmpfs", d.dir, "tmpfs", 0, "size=32k"))
	t.Cleanup(func() { syscall.Unmount(d.dir, syscall.MNT_DETACH) })
	return d
}

func (d smallDisk) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d smallDisk) filler() string { return filepath.Join(d.dir, "filler") }

// fill leaves no room.
func (d smallDisk) fill() {
	d.t.Helper()
	f, err := os.OpenFile(d.filler(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	d.must(err)
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		d.t.Fatal(err)
	}
}

// room frees space.
func (d smallDisk) room() {
	d.t.Helper()
	d.must(os.Remove(d.filler()))
}

// unready fails if a daemon has notified systemd that it is ready.
func (c *cluster) unready(p *lab.Process) {
	c.t.Helper()
	for _, m := range p.Notifications() {
		if strings.Contains(m, "READY=1") {
			c.t.Errorf("told systemd %q", m)
		}
	}
}

// TestStartOnAFullDisk: docker must not start with an old subnet. A daemon that cannot write
// subnet.env is not ready, keeps the network, and becomes ready once it can.
func TestStartOnAFullDisk(t *testing.T) {
	t.Parallel()
	disk := newSmallDisk(t)
	c, h := oneHost(t, upperConfig)
	h.SubnetFile = filepath.Join(disk.dir, "subnet.env")
	said := func(words ...string) {
		t.Helper()
		c.saysTimes(h.Flanneld(), 1, words...)
	}

	disk.fill()
	p := c.launch(h)
	said("level=ERROR", "failed to write subnet file, will retry", h.SubnetFile, "no space left on device", "READY waits for it")
	said("level=WARN", "failed to write lease claim, will retry", "no space left on device")
	c.within(5*time.Second, "the network", func() error {
		if len(c.snapshot(h, "10.42.0.0/16", "flannel.1").Links) != 1 {
			return errors.New("flannel.1 is not there")
		}
		return nil
	})
	c.unready(p)
	disk.room()
	c.must(p.WaitReady(c.ctx))
	said("no longer: failed to write subnet file, will retry")
	said("no longer: failed to write lease claim, will retry")
	if _, err := os.Stat(h.SubnetFile + ".lease"); err != nil {
		t.Error(err)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(h.SubnetFile), ".*"))
	if len(left) > 0 || err != nil {
		t.Errorf("left behind: %v, %v", left, err)
	}
	c.stop(p)

	// A file of a run before names a subnet that cannot be this host's.
	stale := []byte("FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n")
	own := c.subnet(h)
	c.must(os.WriteFile(h.SubnetFile, stale, 0o644))
	disk.fill()
	p = c.start(h) // the old one made room
	said("removed subnet file, it named another subnet and cannot be replaced", "before=10.42.7.0/24")
	if got := c.subnet(h); got != own {
		t.Errorf("the file names %s, not %s", got, own)
	}
	c.stop(p)

	c.must(os.WriteFile(h.SubnetFile, stale, 0o644))
	dir := filepath.Dir(h.SubnetFile)
	c.must(syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""))
	p = c.launch(h)
	said("level=ERROR", "failed to write subnet file, will retry", "read-only file system", "it names 10.42.7.0/24, which is not this host's")
	c.unready(p)
	c.must(syscall.Mount("", dir, "", syscall.MS_REMOUNT, ""))
	c.must(p.WaitReady(c.ctx))
	if got := c.subnet(h); got != own {
		t.Errorf("the file names %s, not %s", got, own)
	}
}

// TestSubnetLostOnAFullDisk: a host that gets another subnet while nothing can be written
// has no file that names the old one, which is another host's by then.
func TestSubnetLostOnAFullDisk(t *testing.T) {
	t.Parallel()
	disk := newSmallDisk(t)
	c, h := oneHost(t, vxlanConfig)
	h.SubnetFile = filepath.Join(disk.dir, "subnet.env")
	c.start(h)
	disk.fill()
	_, old := c.steal(h)
	c.saysTimes(h.Flanneld(), 1, "moved to another subnet", old.String())
	named := func() error {
		env, err := h.ReadSubnet()
		if err == nil && env.Subnet.Masked() == old {
			return fmt.Errorf("the file names %s", old)
		}
		return nil
	}
	c.within(3*time.Second, "the old subnet is not named", named)
	c.within(5*time.Second, "conditions", func() error {
		// The claim does not fit; the file may, where the old one was.
		if logged(h, "level=WARN", "failed to write lease claim, will retry") != 1 {
			return errors.New("not said")
		}
		return named()
	})
	disk.room()
	c.within(3*time.Second, "the new subnet", func() error {
		env, err := h.ReadSubnet()
		if err == nil && env.Subnet.Masked() == old {
			err = fmt.Errorf("it is %s", old)
		}
		return err
	})
	c.within(3*time.Second, "the claim", func() error {
		b, err := os.ReadFile(h.SubnetFile + ".lease")
		if now := strings.Replace(c.subnet(h).String(), "/", "-", 1); err == nil && !strings.Contains(string(b), now) {
			err = fmt.Errorf("it is not of %s: %s", now, b)
		}
		return err
	})
	c.saysTimes(h.Flanneld(), 1, "level=WARN", "restart docker")
}
