package logsink

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func logger(t *testing.T, level slog.Level) (*slog.Logger, *Handler, *reader) {
	t.Helper()
	b := &reader{}
	h := NewHandler(b, level)
	return slog.New(h), h, b
}

// What cannot be pasted from the text form of a field stands on a line of its own.
func TestCommandIsLoggedAsItIsTyped(t *testing.T) {
	for _, command := range []string{
		"ip route del 10.42.7.0/24 dev eth0",
		`etcdctl put /coreos.com/network/config '{"Network":"10.42.0.0/16"}'`,
		`etcdctl put '/a\b/config' {}`,
	} {
		log, _, b := logger(t, slog.LevelInfo)
		log.Warn("network config is missing, waiting for it", "command", command)
		line, rest, _ := strings.Cut(b.text(), "\n")
		if !strings.Contains(line, "command=") {
			t.Errorf("no field in %s", line)
		}
		if in := strings.Contains(line, command); in == (rest != "") || rest != "" && rest != "\t"+command+"\n" {
			t.Errorf("%s is logged as\n%s", command, b.text())
		}
	}
}

// said counts the lines of a log, and adds up the numbers of omitted lines.
func said(text string) (lines, left int) {
	for line := range strings.Lines(text) {
		lines++
		if _, n, ok := strings.Cut(line, "left_out="); ok {
			var one int
			fmt.Sscan(n, &one)
			left += one
		}
	}
	return lines, left
}

func TestFloodOfOneKind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, _, b := logger(t, slog.LevelInfo)
		const flood = 8688
		for i := range flood { // in 10 s
			log.Warn("skipped peer", "value", i)
			if i == 100 {
				log.Warn("something else", "subnet", "10.42.7.0/24")
				log.Error("skipped peer", "value", "of another level")
			}
			time.Sleep(10 * time.Second / flood)
		}
		synctest.Wait()
		text := b.text()
		if n, _ := said(text); n > burst+4 || strings.Count(text, "something else") != 1 || strings.Count(text, "of another level") != 1 {
			t.Errorf("%d lines:\n%s", n, text)
		}
		time.Sleep(window + 2*summaryDelay) // quiet again
		synctest.Wait()
		text = b.text()
		lines, left := said(text)
		if summaries := strings.Count(text, `msg="omitted similar log lines"`); lines > burst+5 || summaries == 0 || lines-summaries-2+left != flood {
			t.Errorf("%d lines say that %d were left out:\n%s", lines, left, text)
		}
		last := text[strings.LastIndex(text[:len(text)-1], "\n")+1:]
		if !strings.Contains(last, `level=WARN msg="omitted similar log lines" kind="skipped peer"`) || !strings.Contains(last, fmt.Sprintf("latest.value=%d\n", flood-1)) {
			t.Errorf("the last line is %s", last)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if b.text() != text {
			t.Errorf("more lines:\n%s", b.text()[len(text):])
		}
		log.Warn("skipped peer", "value", "later")
		if _, later, _ := strings.Cut(b.text(), text); !strings.Contains(later, "value=later") || strings.Contains(later, "left_out") {
			t.Errorf("a line later: %s", later)
		}
	})
}

func TestNextLineHasTheCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, _, b := logger(t, slog.LevelInfo)
		log = log.With("backend", "vxlan")
		for range burst + 3 {
			log.Info("lease renewed")
		}
		time.Sleep(window)
		log.Info("lease renewed", "subnet", "10.42.7.0/24")
		time.Sleep(time.Hour)
		synctest.Wait()
		lines := strings.SplitAfter(strings.TrimSpace(b.text()), "\n")
		if last := lines[len(lines)-1]; len(lines) != burst+1 || !strings.Contains(last, "subnet=10.42.7.0/24 backend=vxlan left_out=3") {
			t.Errorf("logged\n%s", b.text())
		}
	})
}

func TestFlushSaysWhatIsLeftOut(t *testing.T) {
	log, h, b := logger(t, slog.LevelInfo)
	for range burst + 5 {
		log.Info("lease renewed")
	}
	h.Flush()
	h.Flush()
	if lines, left := said(b.text()); lines != burst+1 || left != 5 {
		t.Errorf("%d lines, %d left out:\n%s", lines, left, b.text())
	}
}

func TestDebugIsNotLimited(t *testing.T) {
	log, _, b := logger(t, slog.LevelDebug)
	for range 1000 {
		log.Debug("applied", "op", "ip route replace")
	}
	if lines, _ := said(b.text()); lines != 1000 {
		t.Errorf("%d lines", lines)
	}
}

func BenchmarkLine(b *testing.B) {
	log := slog.New(NewHandler(New(io.Discard), slog.LevelDebug))
	for b.Loop() {
		log.Debug("applied", "op", "ip route replace 10.42.7.0/24 via 10.42.7.0 dev flannel.1 onlink")
	}
}
