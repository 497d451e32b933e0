package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// busy returns the time that the processors of the machine have worked since boot: in programs, in
// the kernel and for interrupts. The unit of the kernel's counters is 10 ms.
func busy() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("read the machine's CPU time: %w", err)
	}
	d, err := parseBusy(string(text))
	if err != nil {
		return 0, fmt.Errorf("read the machine's CPU time in /proc/stat: %w", err)
	}
	return d, nil
}

// parseBusy parses the first line of /proc/stat (proc(5)): cpu user nice system idle iowait irq
// softirq …
func parseBusy(text string) (time.Duration, error) {
	const tick = 10 * time.Millisecond // USER_HZ is 100 on all architectures that Go supports
	line, _, _ := strings.Cut(text, "\n")
	fields := strings.Fields(line)
	if len(fields) < 8 || fields[0] != "cpu" {
		return 0, errors.New("its first line is not the sum of all processors")
	}
	var sum int64
	for i, field := range fields[1:8] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, err
		}
		if i != 3 && i != 4 { // idle and iowait
			sum += n
		}
	}
	return time.Duration(sum) * tick, nil
}
