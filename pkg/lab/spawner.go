package lab

import (
	"errors"
	"runtime"
)

// A spawner runs functions on one OS thread that lives as long as the lab. Processes must be
// started there, because the kernel sends the parent-death signal when the starting thread ends,
// not the process.
type spawner struct {
	work chan func()
	quit chan struct{}
	gone chan struct{}
}

func newSpawner() *spawner {
	s := &spawner{work: make(chan func()), quit: make(chan struct{}), gone: make(chan struct{})}
	go func() {
		runtime.LockOSThread() // not unlocked: the thread must end with this goroutine
		defer close(s.gone)
		for {
			select {
			case fn := <-s.work:
				fn()
			case <-s.quit:
				return
			}
		}
	}()
	return s
}

// run runs fn on the thread and returns its error.
func (s *spawner) run(fn func() error) error {
	result := make(chan error, 1)
	select {
	case s.work <- func() { result <- fn() }:
		return <-result
	case <-s.quit:
		return errors.New("the lab is closed")
	}
}

// close ends the thread, and with it all processes that are still running.
func (s *spawner) close() {
	close(s.quit)
	<-s.gone
}
