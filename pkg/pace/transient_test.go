package pace

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWhichErrorsPass(t *testing.T) {
	for _, c := range []struct {
		err             error
		scarce, passing bool
	}{
		{fmt.Errorf("open: %w", unix.EMFILE), true, true},
		{fmt.Errorf("dump: %w", unix.ENOBUFS), true, true},
		{fmt.Errorf("dump: %w", unix.EPERM), false, false},
		{errors.Join(unix.EBUSY, unix.ENOSYS), false, false},
		{errors.New("no default route"), false, true},
	} {
		if scarce, passing := IsResourceError(c.err), IsTemporary(c.err); scarce != c.scarce || passing != c.passing {
			t.Errorf("%v: scarce %t, passing %t", c.err, scarce, passing)
		}
	}
}
