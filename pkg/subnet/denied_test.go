package subnet_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"flanneld/pkg/condition"
	"flanneld/pkg/registry"
	"flanneld/pkg/subnet"
)

// Denied requests are reported by the code that opened the registry. They do not begin or end an
// outage, however often they are repeated.
func TestRefusalIsNoOutage(t *testing.T) {
	refused := fmt.Errorf("list: %w", registry.ErrDenied)
	in(t, func(f *fixture) {
		f.reg.SetConfig([]byte("good"))
		quiet := func() {
			t.Helper()
			elapse(10 * time.Minute)
			f.says("level=WARN", 0)
			f.says("level=ERROR", 0)
			f.says("is reachable again", 0)
		}
		done := make(chan bool, 1)
		f.reg.Fail(refused)
		go func() {
			_, err := subnet.WaitConfig(context.WithoutCancel(f.Context()), f.reg, f.Log, condition.NewList(f.Log), func(time.Time) {}, func([]byte) (int, error) { return 0, nil })
			done <- err == nil
		}()
		quiet()
		f.reg.Fail(nil)
		<-done

		f.reg.Fail(refused)
		go func() { done <- f.mustAcquire().Subnets.IsValid() }()
		quiet()
		f.reg.Fail(nil)
		<-done

		w := f.follow()
		f.reg.Fail(refused)
		quiet()
		f.reg.Fail(nil)
		elapse(10 * time.Second)
		f.says("level=WARN", 0)
		if held := w.held(w.own.Subnets); !held.SameAs(w.own) {
			t.Errorf("the lease is %+v, was %+v", held, w.own)
		}
	})
}
