package machine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"flanneld/pkg/lab/wait"
)

// cgroups returns the mount points of the cgroup hierarchies, version 2 first.
func cgroups() ([]string, error) {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	var second, first []string
	for line := range strings.Lines(string(text)) {
		switch f := strings.Fields(line); f[2] {
		case "cgroup2":
			second = append(second, f[1])
		case "cgroup":
			first = append(first, f[1])
		}
	}
	if len(second) == 0 {
		return nil, errors.New("no cgroup2 is mounted")
	}
	return append(second, first...), nil
}

// removeCgroups removes a host's cgroups in every hierarchy after its last process has ended.
func removeCgroups(ctx context.Context, name string) error {
	mounts, err := cgroups()
	if err != nil {
		return err
	}
	for _, mount := range mounts {
		top := filepath.Join(mount, name)
		err := wait.Until(ctx, func() error {
			dirs, err := subdirectories(top)
			for _, dir := range slices.Backward(dirs) {
				err = errors.Join(err, os.Remove(dir))
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("remove cgroup: %w", err)
		}
	}
	return nil
}

// sweep removes the cgroups of hosts whose lab was killed, which have no network namespace any
// more.
func sweep(ctx context.Context) error {
	mounts, err := cgroups()
	if err != nil {
		return err
	}
	var errs []error
	for _, mount := range mounts {
		left, err := filepath.Glob(filepath.Join(mount, "flab*-*"))
		errs = append(errs, err)
		for _, dir := range left {
			name := filepath.Base(dir)
			if _, err := os.Stat(namespacePath(name)); errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, removeCgroups(ctx, name), removePropagate(name))
			}
		}
	}
	return errors.Join(errs...)
}

// removePropagate removes a directory that nspawn creates for mounts from outside and cannot remove
// itself.
func removePropagate(name string) error {
	err := os.Remove(filepath.Join("/run/systemd/nspawn/propagate", name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// subdirectories lists a directory and those below it, each before its content.
func subdirectories(top string) (dirs []string, err error) {
	err = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err == nil && d.IsDir():
			dirs = append(dirs, path)
		}
		return err
	})
	return dirs, err
}
