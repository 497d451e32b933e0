// Package logs collects and searches the logs of programs under test.
package logs

import (
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A Buffer is a log that can be read while it is written. The zero value is empty.
type Buffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// Count returns how often a text is in the log.
func (b *Buffer) Count(text string) int { return strings.Count(b.String(), text) }

// Find returns the lines of a log that contain all of the words.
func Find(log string, words ...string) (found []string) {
	for line := range strings.Lines(log) {
		all := true
		for _, w := range words {
			all = all && strings.Contains(line, w)
		}
		if all {
			found = append(found, line)
		}
	}
	return found
}

// Time returns the time of a line.
func Time(line string) (time.Time, error) {
	_, rest, _ := strings.Cut(line, "time=")
	stamp, _, _ := strings.Cut(rest, " ")
	return time.Parse(time.RFC3339Nano, stamp)
}

var commandField = regexp.MustCompile(` command=("(?:[^"\\]|\\.)*"|\S+)`)

// Command returns the command field of a line, without the quotes of the log.
func Command(line string) string {
	m := commandField.FindStringSubmatch(line)
	if m == nil {
		return ""
	}
	if text, err := strconv.Unquote(m[1]); err == nil {
		return text
	}
	return m[1]
}
