// Package cache keeps directories that take long to create, such as root file systems, in the
// user's cache directory (XDG_CACHE_HOME). If several processes need one, the first one creates it
// and the others wait.
package cache

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Dir returns a directory for reading. Its name contains the given name and a hash of the recipe.
// If it does not exist, Dir calls say with its name, and make, which creates it under a temporary
// name that does not exist yet.
func Dir(name, recipe string, say func(dir string), make func(dir string) error) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache: %w", err)
	}
	cache = filepath.Join(cache, "flanneld")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", fmt.Errorf("make the cache: %w", err)
	}
	lock, err := os.Open(cache)
	if err != nil {
		return "", fmt.Errorf("open the cache: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock the cache: %w", err)
	}
	key := sha256.Sum256([]byte(recipe))
	dir := filepath.Join(cache, fmt.Sprintf("%s-%x", name, key[:6]))
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return dir, err
	}
	say(dir)
	part := dir + ".part"
	if err := os.RemoveAll(part); err != nil {
		return "", fmt.Errorf("remove what was begun before: %w", err)
	}
	if err := make(part); err != nil {
		return "", errors.Join(fmt.Errorf("make %s: %w", dir, err), os.RemoveAll(part))
	}
	return dir, os.Rename(part, dir)
}
