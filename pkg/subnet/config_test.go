package subnet_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"flanneld/pkg/condition"
	"flanneld/pkg/subnet"
)

func TestWaitConfig(t *testing.T) {
	in(t, func(f *fixture) {
		f.reg.Fail(errAway)
		got := make(chan string, 1)
		go func() {
			c, err := subnet.WaitConfig(f.Context(), f.reg, f.Log, condition.NewList(f.Log), func(time.Time) {}, func(raw []byte) (string, error) {
				if string(raw) != "good" {
					return "", errors.New("Network is missing in " + string(raw))
				}
				return string(raw), nil
			})
			if err != nil {
				t.Error(err)
			}
			got <- c
		}()
		elapse(30 * time.Second)
		f.says("is unreachable", 1)
		f.reg.Fail(nil)
		elapse(10 * time.Second)
		f.says("is reachable again", 1)
		f.says("config is missing", 1)
		f.reg.SetConfig([]byte("bad"))
		elapse(10 * time.Second)
		f.says("config is invalid", 1)
		f.reg.SetConfig([]byte("worse"))
		elapse(10 * time.Second)
		f.says("config is invalid", 2)
		f.reg.SetConfig(make([]byte, 9<<20))
		elapse(10 * time.Second)
		f.says("config is invalid", 3)
		f.says("must be at most 65536 bytes long, not 9437184", 1)
		f.reg.SetConfig(nil)
		elapse(10 * time.Second)
		f.says("config is missing", 2)
		f.reg.SetConfig([]byte("good"))
		start := time.Now()
		if c := <-got; c != "good" {
			t.Errorf("config %q", c)
		}
		if d := time.Since(start); d > time.Second {
			t.Errorf("noticed the config after %v", d)
		}
	})
}

func TestWaitConfigEndsWithContext(t *testing.T) {
	in(t, func(f *fixture) {
		ctx, cancel := context.WithCancel(f.Context())
		done := make(chan error, 1)
		go func() {
			_, err := subnet.WaitConfig(ctx, f.reg, f.Log, condition.NewList(f.Log), func(time.Time) {}, func([]byte) (int, error) { return 0, nil })
			done <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func TestFollowConfig(t *testing.T) {
	in(t, func(f *fixture) {
		f.reg.SetConfig([]byte("first"))
		var seen []string
		ctx, cancel := context.WithCancel(f.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			subnet.FollowConfig(ctx, f.reg, condition.NewList(f.Log), func(raw []byte) (string, error) {
				if string(raw) == "bad" {
					return "", errors.New("no good")
				}
				return string(raw), nil
			}, func(c string) {
				if len(seen) == 0 || seen[len(seen)-1] != c {
					seen = append(seen, c)
				}
			})
		}()
		elapse(time.Hour)
		f.reg.SetConfig([]byte("bad"))
		elapse(time.Hour)
		f.says("config is invalid, keeping", 1)
		f.reg.SetConfig(nil)
		elapse(time.Hour)
		f.says("config was deleted, keeping", 1)
		f.reg.Fail(errAway)
		elapse(time.Hour)
		f.reg.Fail(nil)
		f.reg.SetConfig([]byte("second"))
		elapse(time.Minute)
		f.says("level=WARN", 2)
		cancel()
		<-done
		if len(seen) != 2 || seen[0] != "first" || seen[1] != "second" {
			t.Errorf("saw %q", seen)
		}
	})
}

// TestConfigChangesWhileAcquiring: a host that waits for its first subnet restarts with the current
// config.
func TestConfigChangesWhileAcquiring(t *testing.T) {
	in(t, func(f *fixture) {
		s := newScarce(f)
		s.full()
		f.reg.SetConfig([]byte("narrow"))
		parse := func(raw []byte) (string, error) { return string(raw), nil }
		whileConfig := func(config string) (context.Context, func() error) {
			return subnet.WhileConfig(f.Context(), f.reg, condition.NewList(f.Log), parse, func(c string) bool { return c == config })
		}
		while, settle := whileConfig("narrow")
		w := s.begin()
		elapse(10 * time.Minute)
		if while.Err() != nil || !s.waits() {
			t.Errorf("%v, stats %+v", while.Err(), w.stats())
		}
		f.reg.SetConfig([]byte("wide"))
		start := time.Now()
		<-while.Done()
		var changed subnet.Changed[string]
		if err := settle(); !errors.As(err, &changed) || changed.Config != "wide" || time.Since(start) > time.Minute {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		w.end()

		while, settle = whileConfig("wide")
		f.Pool = s.wider
		w = s.begin()
		s.leases(w, "10.42.10.0/24", time.Second)
		if err := settle(); err != nil || while.Err() == nil {
			t.Errorf("settled: %v, %v", err, while.Err())
		}
	})
	in(t, func(f *fixture) {
		ctx, cancel := context.WithCancel(f.Context())
		_, settle := subnet.WhileConfig(ctx, f.reg, condition.NewList(f.Log), func([]byte) (int, error) { return 0, nil }, func(int) bool { return true })
		cancel()
		if err := settle(); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}
