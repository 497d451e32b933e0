package lab

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Usage is what a process has consumed.
type Usage struct {
	CPU time.Duration // user and system time since its start, in steps of 10 ms
	RSS int64         // resident memory now, in bytes
	HWM int64         // the most resident memory it ever had, in bytes
}

// Usage reads the consumption of a running process from /proc.
func (p *Process) Usage() (Usage, error) {
	var u Usage
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID()))
	if err != nil {
		return u, fmt.Errorf("read usage of process %d: %w", p.PID(), err)
	}
	// proc_pid_stat(5): the name in parentheses may contain spaces; utime and stime are fields 14 and 15.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 13 {
		return u, fmt.Errorf("read usage of process %d: unexpected stat %q", p.PID(), stat)
	}
	for _, field := range fields[11:13] {
		ticks, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return u, fmt.Errorf("read CPU time of process %d: %w", p.PID(), err)
		}
		u.CPU += time.Duration(ticks) * (time.Second / 100) // USER_HZ is 100 on every Go platform
	}
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
	return u, nil
}
