package status

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Style is how a document is written as text.
type Style struct {
	All     bool // all peers, instead of those that are not fine
	Aligned bool // columns are aligned by spaces; otherwise they are separated by tabs
	Colors  bool // the verdict and the severities are coloured with ANSI escape sequences
}

// Text returns the document as text. Its first line is the verdict, and the reason.
func (d *Document) Text(s Style) string {
	var b strings.Builder
	b.WriteString(s.color(verdictColor(d.Verdict), Clean(string(d.Verdict))))
	if d.Reason != "" {
		b.WriteString(": " + Clean(d.Reason))
	}
	b.WriteString("\n")
	if d.Daemon.PID == 0 { // there is no daemon
		b.WriteString(hint + "\n")
		return b.String()
	}
	b.WriteString("\n")
	s.table(&b, d.Facts())
	if len(d.Conditions) > 0 {
		b.WriteString("\nconditions:\n")
		s.table(&b, d.conditionRows(s))
	}
	b.WriteString("\n" + d.peerLine() + "\n")
	if rows := d.peerRows(s); len(rows) > 1 {
		s.table(&b, rows)
	}
	if d.Verdict != VerdictOK {
		b.WriteString("\n" + hint + "\n")
	}
	return b.String()
}

// hint is the last line unless all is well.
const hint = "'flanneld doctor' looks for the cause."

// Facts returns the lines about this host: a name and a text.
func (d *Document) Facts() [][]string {
	rows := [][]string{
		{"store", d.storeText()},
		{"lease", d.leaseText()},
		{"uplink", list(d.Uplink.Interface, on(d.Uplink.Address.IsValid(), d.Uplink.Address.String()), d.publicIP(), mtu(d.Uplink.MTU))},
		{"backend", list(d.Backend.Type, word("device", d.Backend.Device), mtu(d.Backend.MTU))},
		{"filter", d.filterText()},
		{"drift", d.driftText()},
		{"last repair", d.repairText()},
		{"daemon", list(word("version", d.Daemon.Version), fmt.Sprint("pid ", d.Daemon.PID), "up "+Span(d.Now.Sub(d.Daemon.Started)))},
	}
	for _, r := range rows {
		r[1] = cmp.Or(Clean(r[1]), "unknown")
	}
	return rows
}

func (d *Document) storeText() string {
	s := d.Store
	name := "etcd"
	if s.API != "" {
		name += " " + s.API
	}
	if s.Up != nil && !*s.Up && len(s.Endpoints) > 0 {
		name += " at " + strings.Join(s.Endpoints, " ")
	}
	answers, peers := "not asked yet", "list of peers unknown"
	if s.ViewAge != nil {
		peers = "list of peers " + Span(seconds(*s.ViewAge)) + " old"
	}
	switch {
	case s.Up == nil:
	case *s.Up && s.ViewAge != nil:
		answers, peers = "answered "+Span(seconds(*s.ViewAge))+" ago", ""
	case *s.Up:
		answers = "answers"
	case s.DownSince != nil:
		answers = "has not answered for " + Span(d.Now.Sub(*s.DownSince))
	default:
		answers = "does not answer"
	}
	invalid := ""
	if s.Invalid > 0 {
		invalid = fmt.Sprint("invalid entries ", s.Invalid)
	}
	return list(name, word("prefix", s.Prefix), answers, peers, invalid)
}

func (d *Document) leaseText() string {
	l := d.Lease
	if !l.Subnet.IsValid() {
		return "none"
	}
	text := l.Subnet.String()
	if d.Network.CIDR.IsValid() {
		text += " of " + d.Network.CIDR.String()
	}
	expires := ""
	switch {
	case l.Remaining != nil && *l.Remaining < 0:
		expires = "expired " + Span(seconds(-*l.Remaining)) + " ago"
	case l.Remaining != nil:
		expires = "expires in " + Span(seconds(*l.Remaining))
	case d.Daemon.Ready:
		expires = "reserved, does not expire"
	default:
		expires = "of the last run, its end is unknown"
	}
	if l.Lost {
		expires = "taken by another host"
	}
	return list(text, expires)
}

func (d *Document) publicIP() string {
	if u := d.Uplink; u.PublicIP.IsValid() && u.PublicIP != u.Address {
		return "public IP " + u.PublicIP.String()
	}
	return ""
}

func (d *Document) filterText() string {
	f := d.Filter
	if f.Keeper == "" {
		return ""
	}
	name := f.Keeper
	if f.Version != "" {
		name += " " + strings.TrimPrefix(f.Version, name+" ")
	}
	return list(name, on(f.Masquerade, "masquerades"), on(f.Forward, "accepts forwarding"), on(f.Lock, "underlay lock"))
}

func (d *Document) driftText() string {
	switch {
	case d.Drift == nil:
		return ""
	case *d.Drift == 0:
		return "none"
	}
	var kinds []string
	for k, n := range d.DriftKinds {
		kinds = append(kinds, fmt.Sprintf("%d %s", n, k))
	}
	slices.Sort(kinds)
	return cmp.Or(strings.Join(kinds, ", "), fmt.Sprint(*d.Drift))
}

func (d *Document) repairText() string {
	if d.LastRepair == nil {
		return "none since the start"
	}
	return Span(d.Now.Sub(d.LastRepair.At)) + " ago: " + d.LastRepair.What
}

// conditionRows returns a line for each condition, and one for each command that resolves it.
func (d *Document) conditionRows(s Style) (rows [][]string) {
	for _, c := range d.Conditions {
		severity := s.color(severityColor(c.Severity), Clean(string(c.Severity)))
		rows = append(rows, []string{"  " + severity, "for " + Span(d.Now.Sub(c.Since)), Clean(c.Text)})
		if c.Remedy != "" {
			rows = append(rows, []string{"", "", "run: " + Clean(c.Remedy)})
		}
	}
	return rows
}

// peerLine returns the numbers of peers by state.
func (d *Document) peerLine() string {
	c := d.Count()
	parts := []string{fmt.Sprintf("%d fine", c.Fine)}
	for _, p := range []struct {
		n    int
		name string
	}{{c.Skipped, "skipped"}, {c.Unprogrammed, "unprogrammed"}, {c.Unknown, "unknown"}, {c.Failing, "failing"}, {c.Lossy, "lossy"}} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.name))
		}
	}
	noun := "peers"
	if len(d.Peers) == 1 {
		noun = "peer"
	}
	switch {
	case len(d.Peers) == 0 && d.Store.ViewAge == nil:
		return "peers unknown"
	case len(d.Peers) == 0:
		return "no peers"
	}
	return fmt.Sprintf("%d %s: %s", len(d.Peers), noun, strings.Join(parts, ", "))
}

func (d *Document) peerRows(s Style) [][]string {
	rows := [][]string{{"subnet", "public IP", "state", "programmed", "sent packets/bytes", "received", "RTT", "loss", "changed", "reason"}}
	const sent = 4
	counted := !s.Aligned || slices.ContainsFunc(d.Peers, func(p Peer) bool { return p.Sent != nil })
	for i := range d.Peers {
		p := &d.Peers[i]
		if p.Fine() && !s.All {
			continue
		}
		state := Clean(string(p.State))
		if p.State == OK && !p.Fine() {
			state = string(p.Probe)
		}
		changed := "before the start"
		if p.Changed != nil {
			changed = Span(d.Now.Sub(*p.Changed)) + " ago"
		}
		rows = append(rows, []string{
			p.Subnet.String(), on(p.PublicIP.IsValid(), p.PublicIP.String()), s.color(stateColor(p), state), cmp.Or(Clean(p.Programmed), "-"),
			traffic(p.Sent), traffic(p.Received), rtt(p.RTT), loss(p.Loss), changed, Clean(p.Reason),
		})
	}
	if !counted { // leaves room for the reason on a terminal
		for i := range rows {
			rows[i] = slices.Delete(rows[i], sent, sent+2)
		}
	}
	return rows
}

func traffic(t *Traffic) string {
	if t == nil {
		return "-"
	}
	return fmt.Sprintf("%d/%d", t.Packets, t.Bytes)
}

func rtt(ms *float64) string {
	switch {
	case ms == nil:
		return "unknown"
	case *ms < 10:
		return fmt.Sprintf("%.2f ms", *ms)
	}
	return fmt.Sprintf("%.0f ms", *ms)
}

func loss(share *float64) string {
	if share == nil {
		return "unknown"
	}
	return fmt.Sprintf("%.0f %%", 100**share)
}

// list joins the parts that are not empty.
func list(parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(p string) bool { return p == "" }), ", ")
}

func word(name, value string) string {
	if value == "" {
		return ""
	}
	return name + " " + value
}

func on(is bool, what string) string {
	if is {
		return what
	}
	return ""
}

func mtu(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint("MTU ", n)
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// Span returns a duration in its two largest units.
func Span(d time.Duration) string {
	d = max(d, 0)
	units := []struct {
		name string
		of   time.Duration
	}{{"d", 24 * time.Hour}, {"h", time.Hour}, {"min", time.Minute}, {"s", time.Second}}
	for i, u := range units {
		n := d / u.of
		if n == 0 && i+1 < len(units) {
			continue
		}
		text := fmt.Sprintf("%d %s", n, u.name)
		if i+1 < len(units) {
			if m := d % u.of / units[i+1].of; m > 0 {
				text += fmt.Sprintf(" %d %s", m, units[i+1].name)
			}
		}
		return text
	}
	return ""
}

// Line returns the text of an error as one line for a terminal. Several errors are joined by
// semicolons.
func Line(err error) string {
	return Clean(strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; "))
}

// Clean returns text in which characters that a terminal might interpret are escaped. It may come
// from other hosts.
func Clean(s string) string {
	if utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return s
	}
	q := strconv.Quote(s)
	return q[1 : len(q)-1]
}
