package main

import (
	"fmt"
	"time"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/logs"
)

// logged counts the lines of the log of a host's flanneld that contain all of the words.
func logged(h *lab.Host, words ...string) int { return lines(h.Flanneld(), words...) }

// lines counts the lines of a daemon's log that contain all of the words.
func lines(p *lab.Process, words ...string) int { return len(logs.Find(p.Logs(), words...)) }

// says waits for a log line with all the words, and returns the command in the last of them.
func (c *cluster) says(p *lab.Process, words ...string) (command string) {
	c.t.Helper()
	return c.saysAfter(p, 0, words...)
}

// saysAfter ignores earlier lines.
func (c *cluster) saysAfter(p *lab.Process, before int, words ...string) (command string) {
	c.t.Helper()
	var found []string
	c.within(30*time.Second, fmt.Sprintf("%q in the log", words), func() error {
		if found = logs.Find(p.Logs()[before:], words...); len(found) == 0 {
			return fmt.Errorf("it says\n%s", p.Logs())
		}
		return nil
	})
	return logs.Command(found[len(found)-1])
}

// saysTimes waits until exactly n lines of a daemon's log have all the words.
func (c *cluster) saysTimes(p *lab.Process, n int, words ...string) {
	c.t.Helper()
	c.within(30*time.Second, fmt.Sprintf("%q in %d lines of the log", words, n), func() error {
		if got := lines(p, words...); got != n {
			return fmt.Errorf("in %d lines:\n%s", got, p.Logs())
		}
		return nil
	})
}

// said wants exactly n lines of a daemon's log to have all the words by now.
func (c *cluster) said(p *lab.Process, n int, words ...string) {
	c.t.Helper()
	if got := lines(p, words...); got != n {
		c.t.Errorf("%q in %d lines of the log, want %d:\n%s", words, got, n, p.Logs())
	}
}
