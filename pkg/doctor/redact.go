package doctor

import (
	"encoding/base64"
	"encoding/json"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// Redactor replaces secrets in text. All output of the doctor passes through one: by the text that
// is known to be a secret, and by the form of what usually is one.
type Redactor struct{ known []string }

// redacted stands in the place of a secret.
const redacted = "[redacted]"

// minSecret is the length of the shortest secret that is replaced wherever it stands. A shorter one
// may be a part of ordinary words; it is replaced only where its context marks it as a secret.
const minSecret = 5

// NewRedactor returns a Redactor for known secrets, such as a password for etcd, in all the forms
// in which they may be written. Empty ones are ignored.
func NewRedactor(secrets ...string) *Redactor {
	r := new(Redactor)
	for _, s := range secrets {
		if len(s) < minSecret {
			continue
		}
		quoted, _ := json.Marshal(s)
		r.known = append(r.known, s, url.QueryEscape(s), url.PathEscape(s), url.UserPassword("", s).String()[1:],
			strings.Trim(string(quoted), `"`), base64.StdEncoding.EncodeToString([]byte(s)), base64.URLEncoding.EncodeToString([]byte(s)))
	}
	// The longest first, so that no rest of a longer form remains.
	slices.SortFunc(r.known, func(a, b string) int { return len(b) - len(a) })
	r.known = slices.Compact(r.known)
	return r
}

// What usually is a secret. The first group of each is kept.
var (
	// A PEM block with a key, also one that is cut off.
	pemKey = regexp.MustCompile(`(?s)(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)`)
	// The user part of a URL. A password may contain anything but white space and quotes.
	userPart = regexp.MustCompile(`([a-zA-Z][a-zA-Z0-9+.-]*://)[^\s"'<>]*@`)
	// name=value, "name": "value", Name: value.
	assignment = regexp.MustCompile(`(?i)([a-z0-9_.-]*` + secretName + `[a-z0-9_-]*\\*["']?\s*[=:]\s*)` + value)
	// --name value
	flagValue = regexp.MustCompile(`(?i)((?:^|[^a-z0-9-])--?[a-z0-9-]*` + secretName + `[a-z0-9-]*\s+)(` + value + `)`)
	// Authorization: Basic dXNlcjpwYXNz
	authorization = regexp.MustCompile(`(?i)((?:authorization["']?\s*[=:]\s*["']?(?:basic|bearer|token|digest)?|\b(?:basic|bearer))\s+)[^\s"',;]+`)
	// A JSON Web Token.
	webToken = regexp.MustCompile(`()eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*`)
)

// pattern is an expression with parts of a text, in lower case, without any of which it matches
// nothing. To look for them is a hundred times as fast, and a log has megabytes.
type pattern struct {
	*regexp.Regexp
	hints []string
}

// patterns returns the expressions in the order in which they are applied.
func patterns() []pattern {
	names := []string{"passw", "passphrase", "secret", "token", "key", "psk", "credential"} // as in secretName
	return []pattern{
		{pemKey, []string{"private key-----"}}, {userPart, []string{"://"}}, {authorization, []string{"authorization", "basic", "bearer"}},
		{assignment, names}, {flagValue, names}, {webToken, []string{"eyj"}},
	}
}

// secretName matches what is in the name of a secret.
const secretName = `(?:passw(?:or)?d|passphrase|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|preshared[_-]?key|psk|credential)`

// value matches the value of an assignment: with quotes to the closing one, else to white space.
const value = `(?:\\*"[^"\\]*(?:\\.[^"\\]*)*"?|'[^']*'?|[^\s"',;&]+)`

// String returns a text without secrets.
func (r *Redactor) String(text string) string {
	for _, k := range r.known {
		text = strings.ReplaceAll(text, k, redacted)
	}
	// As (?i) has it, K of Kelvin and the long s are letters as well.
	lower := strings.ToLower(strings.ToUpper(text))
	for _, p := range patterns() {
		switch {
		case !p.hinted(lower):
		case p.Regexp == userPart:
			text = p.ReplaceAllString(text, "${1}"+redacted+"@")
		case p.Regexp == flagValue:
			text = p.ReplaceAllStringFunc(text, flagWithoutValue)
		default:
			text = p.ReplaceAllString(text, "${1}"+redacted)
		}
	}
	return text
}

// hinted reports whether a text, in lower case, has one of the hints.
func (p pattern) hinted(lower string) bool {
	return slices.ContainsFunc(p.hints, func(hint string) bool { return strings.Contains(lower, hint) })
}

// flagWithoutValue returns a flag and its value without the value.
func flagWithoutValue(found string) string {
	part := flagValue.FindStringSubmatch(found)
	if slices.Contains([]string{"to", "and", "or", "is", "of"}, part[2]) {
		return found // a sentence about the flag
	}
	return part[1] + redacted
}
