package status

import (
	"strings"
	"unicode/utf8"
)

// ANSI escape sequences.
const (
	reset  = "\x1b[0m"
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
)

func (s Style) color(color, text string) string {
	if !s.Colors || color == "" {
		return text
	}
	return color + text + reset
}

func verdictColor(v Verdict) string {
	switch v {
	case VerdictOK:
		return green
	case VerdictDown:
		return red
	}
	return yellow
}

func severityColor(v Severity) string {
	switch v {
	case Severe:
		return red
	case Notice:
		return ""
	}
	return yellow
}

func stateColor(p *Peer) string {
	switch {
	case p.Fine():
		return ""
	case p.State == Unprogrammed:
		return red
	}
	return yellow
}

// Table returns rows as lines, with their columns aligned, or separated by tabs.
func (s Style) Table(rows [][]string) string {
	var b strings.Builder
	s.table(&b, rows)
	return b.String()
}

// table writes rows with their columns aligned, or separated by tabs.
func (s Style) table(b *strings.Builder, rows [][]string) {
	var widths []int
	for _, r := range rows {
		for i, cell := range r {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], width(cell))
		}
	}
	for _, r := range rows {
		var line strings.Builder
		for i, cell := range r {
			line.WriteString(cell)
			switch {
			case i == len(r)-1:
			case s.Aligned:
				line.WriteString(strings.Repeat(" ", widths[i]-width(cell)+2))
			default:
				line.WriteByte('\t')
			}
		}
		b.WriteString(strings.TrimRight(line.String(), " \t") + "\n")
	}
}

// width returns the number of characters of a cell on a terminal.
func width(cell string) int {
	if color, rest, found := strings.Cut(cell, "m"); found && strings.HasPrefix(strings.TrimSpace(color), "\x1b[") {
		return width(strings.TrimSuffix(rest, reset)) + utf8.RuneCountInString(color) - len(strings.TrimLeft(color, " "))
	}
	return utf8.RuneCountInString(cell)
}
