package main

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"flanneld/pkg/lab"
	"flanneld/pkg/subnetenv"
)

// A report prints the results of the demo, in colour on a terminal.
type report struct {
	out    io.Writer
	colour bool
	start  time.Time
}

func newReport(out io.Writer) *report {
	r := &report{out: out, start: time.Now()}
	if file, ok := out.(*os.File); ok {
		_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
		r.colour = err == nil
	}
	return r
}

func (r *report) paint(code, text string) string {
	if !r.colour {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (r *report) title(format string, args ...any) {
	fmt.Fprintf(r.out, "\n%s  [%.1f s]\n", r.paint("1", fmt.Sprintf(format, args...)), time.Since(r.start).Seconds())
}

func (r *report) line(format string, args ...any) {
	fmt.Fprintf(r.out, "  "+format+"\n", args...)
}

func (r *report) text(text string) {
	for line := range strings.Lines(text) {
		r.line("%s", strings.TrimRight(line, "\n"))
	}
}

func (r *report) hosts(containers []*lab.Container) error {
	table := tabwriter.NewWriter(r.out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(table, "  HOST\tPUBLIC IP\tSUBNET\tCONTAINER\tADDRESS\tMTU\tDEVICE\tEXEC TO READY")
	for _, c := range containers {
		h := c.Host
		env, err := h.ReadSubnet()
		if err != nil {
			return err
		}
		links, err := flannelLinks(h)
		if err != nil {
			return err
		}
		// A backend without its own device sends on the uplink.
		device := strings.Join(append(links, h.Uplink)[:max(1, len(links))], " ")
		fmt.Fprintf(table, "  %s\t%s\t%s\t%s\t%s\t%d\t%s\t%d ms\n", h.Name, h.Addr, env.Subnet.Masked(), c.Name, c.Addr,
			c.MTU, device, h.Flanneld().ReadyAfter().Milliseconds())
	}
	return table.Flush()
}

// shortest formats a time in milliseconds with at most five characters, if it is below a minute.
func shortest(d time.Duration) string {
	ms := float64(d.Microseconds()) / 1e3
	if ms < 10 {
		return fmt.Sprintf("%.2f", ms)
	}
	return fmt.Sprintf("%.0f", ms)
}

// matrix prints which containers reach each other and returns the number of failures.
func (r *report) matrix(containers []*lab.Container, matrix [][]reply) (failed int) {
	const width = 8
	line := fmt.Sprintf("  %-*s", width, "")
	for _, c := range containers {
		line += fmt.Sprintf("%-*s", width, c.Name)
	}
	fmt.Fprintln(r.out, strings.TrimRight(line, " "))
	var first error
	for i, row := range matrix {
		line := fmt.Sprintf("  %-*s", width, containers[i].Name)
		for _, cell := range row {
			colour, text := "32", "✓ "+shortest(cell.rtt)
			if cell.err != nil {
				failed++
				colour, text = "31", "✗"
				if first == nil {
					first = cell.err
				}
			}
			padding := max(1, width-utf8.RuneCountInString(text))
			line += r.paint(colour, text) + strings.Repeat(" ", padding)
		}
		fmt.Fprintln(r.out, strings.TrimRight(line, " "))
	}
	if first != nil {
		r.line("first failure: %v", first)
	}
	return failed
}

// programmed prints what flanneld on a host has done, by its log and by the kernel.
func (r *report) programmed(h *lab.Host) error {
	r.title("What flanneld on %s says to have programmed", h.Name)
	for _, summary := range summaries(h.Flanneld(), "programmed the kernel") {
		r.line("%s", summary)
	}
	r.title("What the kernel of %s holds for %s", h.Name, network)
	state, err := overlayOf(h, netip.MustParsePrefix(network))
	if err != nil {
		return err
	}
	r.text(state.Text())
	return nil
}

// printAccess prints how to inspect the lab.
func (r *report) printAccess(l *lab.Lab, flanneld string, containers []*lab.Container) {
	r.line("enter a host:       nsenter --net=%s", l.Hosts[0].NS.Path())
	r.line("enter a container:  ip netns exec %s sh", containers[0].NS.Name)
	r.line("is it healthy:      nsenter --net=%s %s status --subnet-file=%s", l.Hosts[0].NS.Path(), flanneld, l.Hosts[0].SubnetFile)
	r.line("open its page:      ssh -N -L 9285:%s root@MACHINE, then http://localhost:9285/", subnetenv.SocketPath(l.Hosts[0].SubnetFile))
	r.line("look at the keys:   nsenter --net=%s curl %s/v2/keys%s?recursive=true", l.Fabric.Path(), l.Etcd.Endpoint(),
		strings.TrimSuffix(configKey, "/config"))
	r.line("logs and files:     %s", l.Dir)
	r.line("Processes that are still inside at the end are killed.")
}
