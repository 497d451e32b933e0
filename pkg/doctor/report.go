package doctor

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Version is the version of the JSON form of a Report.
const Version = 1

// Report is the result of a run.
type Report struct {
	Version  int       `json:"version"`
	Daemon   string    `json:"daemon"` // where this host's settings are from
	Findings []Finding `json:"checks"` // failures with the most probable cause first, unknown ones, the rest
}

func (r *Report) sort() {
	order := func(s Status) int { return slices.Index([]Status{Fail, Unknown, OK}, s) }
	slices.SortFunc(r.Findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(order(a.Status), order(b.Status)), cmp.Compare(a.rank, b.rank), cmp.Compare(a.ID, b.ID))
	})
}

// Failed reports whether a check has failed.
func (r Report) Failed() bool { return r.count(Fail) > 0 }

func (r Report) count(s Status) (n int) {
	for _, f := range r.Findings {
		if f.Status == s {
			n++
		}
	}
	return n
}

// JSON writes the report as JSON.
func (r Report) JSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// Style is how a report is shown.
type Style struct {
	Color bool // colours, for a terminal
}

const (
	red, green, yellow, bold, plain = "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[1m", "\x1b[0m"
	idWidth                         = 22
)

// Line returns a finding as one line without its remedy.
func (s Style) Line(f Finding) string {
	mark, color := "✓", green
	switch f.Status {
	case Fail:
		mark, color = "✗", red
	case Unknown:
		mark, color = "?", yellow
	}
	return s.paint(color, mark) + " " + fmt.Sprintf("%-*s ", idWidth, f.ID) + printable(f.Summary)
}

func (s Style) paint(color, text string) string {
	if !s.Color {
		return text
	}
	return color + text + plain
}

// Text writes all findings, and the remedies below the failures.
func (s Style) Text(w io.Writer, r Report) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", printable(r.Daemon))
	for _, f := range r.Findings {
		s.write(&b, f)
	}
	fmt.Fprintf(&b, "%s\n", r.verdict())
	_, err := io.WriteString(w, b.String())
	return err
}

// Causes writes the failures with their remedies, for a reader who has seen the lines of all
// findings.
func (s Style) Causes(w io.Writer, r Report) error {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s\n", s.paint(bold, r.verdict()))
	for _, f := range r.Findings {
		if f.Status == Fail {
			s.write(&b, f)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (s Style) write(b *strings.Builder, f Finding) {
	fmt.Fprintln(b, s.Line(f))
	for line := range strings.Lines(f.Remedy) {
		fmt.Fprintf(b, "  %*s %s\n", idWidth, "mend:", s.paint(bold, printable(strings.TrimRight(line, "\n"))))
	}
}

// verdict returns the last line.
func (r Report) verdict() string {
	failed, unknown := r.count(Fail), r.count(Unknown)
	text := fmt.Sprintf("%d checks: nothing is wrong", len(r.Findings))
	switch {
	case failed == 1:
		text = fmt.Sprintf("%d checks: one problem", len(r.Findings))
	case failed > 1:
		text = fmt.Sprintf("%d checks: %d problems, the most probable cause first", len(r.Findings), failed)
	}
	if unknown > 0 {
		text += fmt.Sprintf("; %d could not be checked", unknown)
	}
	return text
}

// printable returns a text in which no character moves the cursor of a terminal: names and values
// may come from anybody who writes to etcd.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' || r == '\n' {
			return ' '
		}
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' || r >= '\u202a' && r <= '\u202e' || r >= '\u2066' && r <= '\u2069' {
			return '\ufffd'
		}
		return r
	}, s)
}
