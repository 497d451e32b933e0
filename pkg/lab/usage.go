package lab

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Usage is the resource usage of a process.
type Usage struct {
	CPU   time.Duration // user and system time since its start, of all threads
	RSS   int64         // resident memory now, in bytes
	HWM   int64         // peak of resident memory, in bytes
	Files int           // open descriptors

	ChildrenCPU    time.Duration // user and system time of children that have ended, in units of 10 ms
	ChildrenFaults int           // page faults of children that have ended; every child has some
}

// Usage returns the resource usage of a running process.
func (p *Process) Usage() (Usage, error) {
	var u Usage
	// Read the CPU clock of the process (clock_getcpuclockid(3)): the ticks in /proc/PID/stat are
	// too coarse for an idle process.
	const cpuClockSched = 2
	var spent unix.Timespec
	if err := unix.ClockGettime(int32(^p.PID()<<3|cpuClockSched), &spent); err != nil {
		return u, fmt.Errorf("read CPU time of process %d: %w", p.PID(), err)
	}
	u.CPU = time.Duration(spent.Nano())
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		return u, fmt.Errorf("read memory of process %d: %w", p.PID(), err)
	}
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(line, ":")
		number, _, _ := strings.Cut(strings.TrimSpace(value), " ")
		kib, _ := strconv.ParseInt(number, 10, 64)
		switch key {
		case "VmRSS":
			u.RSS = kib << 10
		case "VmHWM":
			u.HWM = kib << 10
		}
	}
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.PID()))
	if err != nil {
		return u, fmt.Errorf("count descriptors of process %d: %w", p.PID(), err)
	}
	u.Files = len(files)
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID()))
	if err != nil {
		return u, fmt.Errorf("read what the children of process %d took: %w", p.PID(), err)
	}
	_, numbers, _ := strings.Cut(string(stat), ") ") // after the name; see proc(5)
	fields := strings.Fields(numbers)
	number := func(field int) int {
		n, _ := strconv.Atoi(fields[field-3])
		return n
	}
	u.ChildrenFaults = number(11)
	u.ChildrenCPU = time.Duration(number(16)+number(17)) * 10 * time.Millisecond
	return u, nil
}
