package lab

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Prioritize has the kernel run etcd before what else wants a processor, until it is started again: where there are many
// hosts, etcd has a machine of its own, and is not one of hundreds of processes that share two processors.
func (e *Etcd) Prioritize() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	// The group, which is the process alone, and not the process: that would be but one of its threads.
	if err := unix.Setpriority(unix.PRIO_PGRP, e.process.PID(), -20); err != nil {
		return fmt.Errorf("set the priority of etcd: %w", err)
	}
	return nil
}
