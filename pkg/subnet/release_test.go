package subnet_test

import (
	"testing"
	"time"

	"flanneld/pkg/lease"
)

func TestRelease(t *testing.T) {
	in(t, func(f *fixture) {
		l := f.mustAcquire()
		if released, err := f.release(); err != nil || released != l {
			t.Errorf("released %+v, %v", released, err)
		}
		elapse(time.Second)
		if held := f.held(l.Subnets); held.Subnets.IsValid() {
			t.Errorf("registry holds %+v", held)
		}
		// It has become another host's.
		f.reg.Put(lease.Key(l.Subnets), value(them, 9), ttl)
		if released, err := f.release(); err != nil || released.Subnets.IsValid() {
			t.Errorf("released another host's lease %+v, %v", released, err)
		}
		if held := f.held(l.Subnets); held.Attrs != attrsOf(them, 9) {
			t.Errorf("registry holds %+v", held)
		}
	})
	in(t, func(f *fixture) {
		f.reg.Put("10.42.9.0-24", value(me, 1), 0)
		l := f.mustAcquire()
		if released, err := f.release(); err != nil || released.Subnets.IsValid() {
			t.Errorf("released %+v, %v", released, err)
		}
		if held := f.held(l.Subnets); held != l {
			t.Errorf("reservation %+v became %+v", l, held)
		}
	})
	in(t, func(f *fixture) {
		l := f.mustAcquire()
		f.reg.Fail(errAway)
		if released, err := f.release(); err == nil {
			t.Errorf("released %+v of %+v without an answer", released, l)
		}
	})
}
