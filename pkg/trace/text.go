package trace

import (
	"fmt"
	"io"
	"strings"

	"flanneld/pkg/dataplane"
)

// Style is how a trace is shown.
type Style struct {
	Color bool // colours, for a terminal
}

const (
	red, green, yellow, bold, plain = "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[1m", "\x1b[0m"
	placeWidth                      = 11
)

// Text writes the steps, with the command that shows each, and the verdict at the end.
func (s Style) Text(w io.Writer, t Trace) error {
	var b strings.Builder
	fmt.Fprintln(&b, t.Daemon)
	fmt.Fprintln(&b, t.Role.text())
	var dir Direction
	for _, step := range t.Steps {
		if step.Direction != dir {
			dir = step.Direction
			from, to := t.Src, t.Dst
			if dir == Reply {
				from, to = to, from
			}
			fmt.Fprintf(&b, "\n%s: %s to %s\n", dir, from, to)
		}
		s.step(&b, step)
	}
	fmt.Fprintf(&b, "\n%s", s.paint(map[Verdict]string{OK: green, Broken: red, Unknown: yellow}[t.Verdict], string(t.Verdict)))
	if t.Reason != "" {
		fmt.Fprintf(&b, ": %s", t.Reason)
	}
	b.WriteString("\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// text returns the sentence about the role.
func (r Role) text() string {
	switch r {
	case Sender:
		return "this is the sender's host"
	case Receiver:
		return "this is the receiver's host"
	case Both:
		return "both containers are on this host"
	}
	return "neither container is on this host"
}

func (s Style) step(b *strings.Builder, step Step) {
	mark, color := "?", yellow
	if step.OK != nil {
		if mark, color = "✓", green; !*step.OK {
			mark, color = "✗", red
		}
	}
	line := func(name, text string) {
		if text != "" {
			fmt.Fprintf(b, "  %*s %s\n", placeWidth, name, text)
		}
	}
	fmt.Fprintf(b, "%s %-*s %s\n", s.paint(color, mark), placeWidth, step.At, step.Object)
	line("", step.Reason)
	line("show:", step.Command)
	if step.Remedy != "" {
		for remedy := range strings.Lines(step.Remedy) {
			line("mend:", s.paint(bold, strings.TrimRight(remedy, "\n")))
		}
	}
}

func (s Style) paint(color, text string) string {
	if !s.Color {
		return text
	}
	return color + text + plain
}

// mac returns a MAC as ip(8) writes it.
func mac(m [6]byte) string { return dataplane.MAC(m).String() }

// and joins words for people.
func and(words []string) string { return strings.Join(words, ", ") }

// objectText returns a state of one object in the notation of ip(8).
func objectText(s dataplane.State) string {
	_, text, _ := strings.Cut(strings.TrimSpace(s.Text()), " ") // without the kind
	return text
}

// routeText returns a route in the notation of ip(8).
func routeText(k dataplane.RouteKey, r dataplane.Route) string {
	return objectText(dataplane.State{Routes: map[dataplane.RouteKey]dataplane.Route{k: r}})
}
