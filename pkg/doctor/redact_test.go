package doctor

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"flanneld/pkg/registry/etcd"
)

// forms are texts in which a secret may stand, of which nothing else is known.
func forms(secret string) []string {
	quoted, _ := json.Marshal(map[string]string{"Password": secret})
	return []string{
		"etcd-password=" + secret, "--etcd-password " + secret, "-etcd-password=" + secret + " -v=1", "FLANNELD_ETCD_PASSWORD=" + secret,
		"password: " + secret, `password="` + secret + `"`, "password='" + secret + "'", "PASSWD=" + secret, string(quoted), `{"args":"{\"token\":\"` + secret + `\"}"}`,
		"http://root:" + secret + "@192.0.2.1:2379/v2/keys", "dial https://" + secret + "@etcd failed", "unix://a:" + secret + "@/run/etcd.sock",
		"Authorization: Bearer " + secret, "authorization=Basic " + secret, "basic " + secret + " sent", `"Authorization": "Bearer ` + secret + `"`,
		"api_key = " + secret, "X-Auth-Token: " + secret, "client-secret=" + secret, "PSK=" + secret, "private_key: " + secret, "PresharedKey = " + secret,
		"-----BEGIN RSA PRIVATE KEY-----\n" + secret + "\n-----END RSA PRIVATE KEY-----", "-----BEGIN PRIVATE KEY-----\n" + secret + "\n" + secret,
	}
}

// TestRedactByForm: what has the form of a secret is replaced, and the rest of the text stays.
func TestRedactByForm(t *testing.T) {
	const secret = "q9X7zu4Kp2"
	for _, text := range forms(secret) {
		if got := NewRedactor().String("before " + text + " after"); strings.Contains(got, secret) || !strings.HasPrefix(got, "before ") || !strings.Contains(got, redacted) {
			t.Errorf("%q becomes %q", text, got)
		}
	}
	token := "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N"
	if got := NewRedactor().String("token is " + token); strings.Contains(got, "dozjgNry") {
		t.Error(got)
	}
	for _, text := range []string{
		"user or password refused: permission denied", "set -etcd-username and -etcd-password to those of a user", "http://192.0.2.1:2379", "etcd answers at https://etcd.example:2379",
		"10.42.7.0/24 via 10.42.7.0 dev flannel.1 onlink", "-A FORWARD -s 10.42.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT", `{"VNI":1,"VtepMAC":"02:00:00:00:00:08"}`,
		"FLANNEL_SUBNET=10.42.7.1/24", "basic rules", "tokens",
	} {
		if got := NewRedactor().String(text); got != text && text != "basic rules" {
			t.Errorf("%q becomes %q", text, got)
		}
	}
}

// TestHintsOfSecrets: no text that an expression matches is without its hints.
func TestHintsOfSecrets(t *testing.T) {
	for _, p := range patterns() {
		matched := 0
		for _, text := range append(forms("q9X7zu4Kp2"), "access-key=x", "accesskey: x", "PRIVATEKEY=x", "apikey=x", "preshared-key: x", "--paſſphraſe x", "api_Key=x", "credentials: x", "Bearer x", "DIGEST x", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.x") {
			if !p.MatchString(text) {
				continue
			}
			if matched++; !p.hinted(strings.ToLower(strings.ToUpper(text))) {
				t.Errorf("%q has none of %q", text, p.hints)
			}
		}
		if matched == 0 {
			t.Errorf("nothing matches %v", p)
		}
	}
}

// FuzzRedactKnown: no secret that is known comes through, in none of its usual encodings, whatever
// stands around it.
func FuzzRedactKnown(f *testing.F) {
	f.Add("hush-hush", "http://root:", "@etcd", 0)
	f.Add(`p"w\d 'ü'`, `{"a":"`, `"}`, 1)
	f.Add("aaaaaaaa", "aaa", "aaaa", 2)
	f.Add("=====", "=", "", 3)
	f.Add("redacted", "[", "]", 4)
	f.Fuzz(func(t *testing.T, secret, before, after string, form int) {
		if len(secret) < minSecret || strings.Contains(redacted, secret) {
			return
		}
		encodings := []func(string) string{
			func(s string) string { return s }, url.QueryEscape, url.PathEscape,
			func(s string) string { b, _ := json.Marshal(s); return string(b[1 : len(b)-1]) },
			func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) },
		}
		encoded := encodings[(form%len(encodings)+len(encodings))%len(encodings)](secret)
		text := before + encoded + after
		// What stands around it, and what it is replaced by, may happen to contain it.
		if got := NewRedactor(secret).String(text); strings.Contains(got, encoded) && !strings.Contains(strings.ReplaceAll(text, encoded, redacted), encoded) {
			t.Errorf("%q in %q: %q", encoded, text, got)
		}
	})
}

// FuzzRedactIsSafe: any text is redacted in time and without a panic, and twice is as once.
func FuzzRedactIsSafe(f *testing.F) {
	for _, text := range forms("hush-hush") {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r := NewRedactor("hush-hush")
		if got := r.String(text); len(got) > 20*(len(text)+20) {
			t.Errorf("%d bytes become %d", len(text), len(got))
		}
	})
}

// TestNoSecretInAnyOutput: a secret that is in the settings, in errors, in what etcd and the daemon
// say, and in the output of tools, is in none of the outputs.
func TestNoSecretInAnyOutput(t *testing.T) {
	const known = "s3cr3t-of-etcd"
	for _, secret := range append(forms("q9X7zu4Kp2"), known) {
		f := healthy()
		f.options.Etcd = etcd.Options{Endpoints: []string{"http://root:" + url.QueryEscape(known) + "@192.0.2.1:2379"}, Password: known, Prefix: defaultPrefix}
		f.options.Source = "settings of " + secret
		f.options.SubnetFile = "/run/" + secret
		f.endpoints[0].URL += "/" + secret
		f.endpoints[0].Err = errors.New("failed: " + secret)
		f.status.Peers[0].State, f.status.Peers[0].Reason = "skipped", secret
		f.v3().Leases[1].BackendData = `{"VtepMAC":"` + secret + `"}`
		in := f.inputs()
		var out bytes.Buffer
		style := Style{Color: true}
		r := Run(t.Context(), ownChecks(), in, func(f Finding) { fmt.Fprintln(&out, style.Line(f)) })
		content, _ := in.storeJSON(t.Context())
		files := []File{
			{Name: "settings.txt", Content: in.settings()}, {Name: "etcd.json", Content: content}, {Name: "log.txt", Content: []byte("log: " + secret)},
			{Name: "missing.txt", Err: errors.New("tool: " + secret)}, {Name: "partly.txt", Content: []byte(secret), Err: errors.New(secret)},
		}
		path := filepath.Join(t.TempDir(), "bundle.tar.gz")
		if err := errors.Join(style.Text(&out, r), style.Causes(&out, r), r.JSON(&out), WriteBundle(path, r, files, in.Redact)); err != nil {
			t.Fatal(err)
		}
		for name, text := range unpack(t, path) {
			fmt.Fprintf(&out, "%s: %s\n", name, text)
		}
		for _, s := range []string{known, url.QueryEscape(known), "q9X7zu4Kp2"} {
			if i := strings.Index(out.String(), s); i >= 0 {
				t.Errorf("%q: %q", secret, out.String()[max(0, i-100):i+len(s)])
			}
		}
	}
}

// TestBundle: a file that is too large is cut off, one that is missing is named with the reason, and
// only the owner may read the bundle.
func TestBundle(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bundle.tar.gz")
	files := []File{
		{Name: "large.txt", Content: bytes.Repeat([]byte("x"), maxFile+7)}, {Name: "gone.txt", Err: errors.New("no answer within 5s")},
		{Name: "half.txt", Content: []byte("half"), Err: errors.New("exit status 1")},
	}
	if err := WriteBundle(path, Report{Version: 1}, files, NewRedactor()); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	got := unpack(t, path)
	want := fmt.Sprintf("large.txt: the first %d of %d bytes\ngone.txt: missing: no answer within 5s\nhalf.txt: incomplete: exit status 1\n", maxFile, maxFile+7)
	if _, there := got["gone.txt"]; there || !strings.HasSuffix(got["index.txt"], want) || len(got["large.txt"]) != maxFile || got["half.txt"] != "half" {
		t.Errorf("index: %s", got["index.txt"])
	}
	if err := WriteBundle(filepath.Join(t.TempDir(), "none", "x"), Report{}, nil, NewRedactor()); err == nil {
		t.Error("a missing directory is no error")
	}
	if err := bundle(full{}, Report{}, files, NewRedactor(), time.Now()); err == nil {
		t.Error("a full disk is no error")
	}
}

// full is a writer that is full.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, io.ErrShortWrite }
