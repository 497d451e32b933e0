package api

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"flanneld/pkg/lab/wait"
	"flanneld/pkg/plan"
	"flanneld/pkg/status"
	"flanneld/pkg/subnetenv"
)

// serve serves sources for a subnet file until stop is called.
func (s Sources) serve(t *testing.T, file string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var serving sync.WaitGroup
	serving.Go(func() {
		s.ServeSocket(ctx, subnetenv.SocketPath(file), s.State.conditions, slog.New(slog.DiscardHandler))
	})
	stop = func() {
		cancel()
		serving.Wait()
	}
	t.Cleanup(stop)
	return stop
}

// answers waits until a daemon answers, and returns its PID.
func answers(t *testing.T, file string, pid int) {
	t.Helper()
	wait.For(t, 3*socketCheck, "an answer", func() error {
		d, err := Dial(file).Status(t.Context())
		if err == nil && d.Daemon.PID != pid {
			err = fmt.Errorf("it is from %d", d.Daemon.PID)
		}
		return err
	})
}

// numbered returns sources that are recognised by a PID.
func numbered(pid int) Sources {
	s := quiet()
	s.Status = func() status.Document {
		d := status.NotRunning(time.Now(), status.VerdictOK, "")
		d.Daemon.PID = pid
		return d
	}
	return s
}

func TestSocketIsKept(t *testing.T) {
	t.Parallel()
	for _, dir := range []string{"short", "long" + strings.Repeat("x", 100) + "/" + strings.Repeat("y", 100)} {
		t.Run(dir[:4], func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), dir, "subnet.env")
			path := subnetenv.SocketPath(file)
			if _, err := Dial(file).Status(t.Context()); !errors.Is(err, ErrNotRunning) {
				t.Errorf("without a daemon: %v", err)
			}
			stop := numbered(1).serve(t, file)
			answers(t, file, 1)
			if info, err := os.Lstat(path); err != nil || info.Mode() != fs.ModeSocket|socketMode {
				t.Errorf("mode %v, %v", info.Mode(), err)
			}
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			answers(t, file, 1)
			stop()
			if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the socket stays: %v", err)
			}

			var dead *net.UnixListener
			err := viaDirectory(path, func(short string) (err error) {
				dead, err = net.ListenUnix("unix", &net.UnixAddr{Name: short})
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			dead.SetUnlinkOnClose(false)
			dead.Close()
			if _, err := Dial(file).Status(t.Context()); !errors.Is(err, ErrNotRunning) {
				t.Errorf("with a dead socket: %v", err)
			}
			numbered(2).serve(t, file)
			answers(t, file, 2)
		})
	}
}

// TestSocketServesLocalNamesAndTicks: a port that is forwarded to the socket is named localhost. What
// is to be done now and then is done when the socket is looked for.
func TestSocketServesLocalNamesAndTicks(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "subnet.env")
	s, ticks := numbered(1), make(chan time.Time, 10)
	s.Tick = func() { ticks <- time.Now() }
	s.serve(t, file)
	answers(t, file, 1)
	ask := func(host string) int {
		c, err := net.Dial("unix", subnetenv.SocketPath(file))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "GET /status HTTP/1.1\r\nHost: %s\r\n\r\n", host)
		answer, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		return answer.StatusCode
	}
	if ok, other := ask("localhost:9285"), ask("site.example:9285"); ok != 200 || other != 421 {
		t.Errorf("localhost: %d, another site: %d", ok, other)
	}
	first := <-ticks
	if second := <-ticks; second.Sub(first) < socketCheck/2 {
		t.Errorf("a tick after %v", second.Sub(first))
	}
}

// TestSocketOfAnother: that of a running daemon is left alone until the daemon ends, and so is a
// file that is no socket.
func TestSocketOfAnother(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "subnet.env")
	stop := numbered(1).serve(t, file)
	answers(t, file, 1)
	second := numbered(2)
	second.serve(t, file)
	waits := func(words string) {
		t.Helper()
		wait.For(t, 3*socketCheck, "the condition "+words, func() error {
			all := second.State.Conditions()
			if len(all) != 1 || all[0].Severity != status.Notice || !strings.Contains(all[0].Text, words) {
				return fmt.Errorf("%v", all)
			}
			return nil
		})
	}
	waits("another flanneld answers on it")
	answers(t, file, 1)
	stop()
	answers(t, file, 2)
	if all := second.State.Conditions(); len(all) > 0 {
		t.Errorf("conditions: %v", all)
	}
	if err := os.Remove(subnetenv.SocketPath(file)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(subnetenv.SocketPath(file), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	waits("must be a socket, or not exist")
	if text, err := os.ReadFile(subnetenv.SocketPath(file)); err != nil || string(text) != "x" {
		t.Errorf("the file has %q, %v", text, err)
	}
}

// TestClientOfOthers: whatever answers on the socket, the client ends with an error.
func TestClientOfOthers(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]struct {
		answer string // and then nothing, or the end
		hangs  bool
		want   string
		ended  bool // it seems to have ended
	}{
		"nothing":   {"", false, "EOF", true},
		"not HTTP":  {"220 mail\r\n", false, "malformed", false},
		"error":     {"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", false, "503 Service Unavailable", false},
		"not JSON":  {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", false, "invalid character", false},
		"wrong":     {"HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{\"peers\":true}", false, "cannot unmarshal", false},
		"cut":       {"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", false, "unexpected EOF", true},
		"hangs":     {"", true, "does not answer", false},
		"hangs mid": {"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", true, "does not answer", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "x")
			l, err := net.Listen("unix", subnetenv.SocketPath(file))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					c.Read(make([]byte, 4096)) // the request
					io.WriteString(c, f.answer)
					if f.hangs {
						io.Copy(io.Discard, c)
					}
					c.Close()
				}
			}()
			start := time.Now()
			_, err = Dial(file).Status(t.Context())
			if err == nil || !strings.Contains(err.Error(), f.want) || errors.Is(err, ErrNotRunning) || errors.Is(err, ErrNoAnswer) != (f.hangs || f.ended) {
				t.Errorf("%v, want %s", err, f.want)
			}
			if took := time.Since(start); took > 2*clientTimeout {
				t.Errorf("after %v", took)
			}
		})
	}
}

func TestClientBoundsAnswers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x")
	l, err := net.Listen("unix", subnetenv.SocketPath(file))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		c.Read(make([]byte, 4096)) // the request
		io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		zeros := make([]byte, 1<<20)
		for err == nil {
			_, err = c.Write(zeros)
		}
	}()
	if _, err := Dial(file).Get(t.Context(), "/status"); err == nil || !strings.Contains(err.Error(), "the answer has more than") {
		t.Error(err)
	}
}

// TestPlanIsForTheSocket: the plan is served there, one at a time and for a limited time, and not over
// TCP.
func TestPlanIsForTheSocket(t *testing.T) {
	t.Parallel()
	s := quiet()
	asked, release := make(chan context.Context, 1), make(chan struct{})
	s.Plan = func(ctx context.Context) plan.Document {
		asked <- ctx
		<-release
		doc := plan.New()
		doc.Note("it is whole")
		return doc
	}
	if code := exchange(t, listenStatus(t, s), "GET /plan HTTP/1.1\r\nHost: x\r\n\r\n"); code != 404 {
		t.Errorf("over TCP: %d", code)
	}
	file := filepath.Join(t.TempDir(), "subnet.env")
	s.serve(t, file)
	c := Dial(file)
	wait.True(t, "the socket is served", func() bool {
		_, err := c.Get(t.Context(), "/healthz")
		return err == nil
	})
	plans := make(chan error)
	go func() {
		doc, err := c.Plan(t.Context())
		if err == nil && (len(doc.Notes) != 1 || doc.Version != plan.Version) {
			err = fmt.Errorf("%+v", doc)
		}
		plans <- err
	}()
	if end, is := (<-asked).Deadline(); !is || time.Until(end) > planTimeout {
		t.Errorf("a plan may take until %v, %t", end, is)
	}
	if _, err := c.Plan(t.Context()); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("a second plan meanwhile: %v", err)
	}
	close(release)
	if err := <-plans; err != nil {
		t.Error(err)
	}
}
