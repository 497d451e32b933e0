package page

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// demo is a network of flannel-lab: real hosts, in namespaces.
type demo struct {
	t                       *testing.T
	socket, host, container string // of the first host: its status socket, and its namespaces
}

// startDemo starts a network that lasts until the test ends.
func startDemo(t *testing.T, hosts string) *demo {
	t.Helper()
	if testing.Short() {
		t.Skip("takes a minute")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, for network namespaces")
	}
	dist, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(filepath.Join(dist, "flannel-lab"), "demo", "--flanneld="+filepath.Join(dist, "flanneld"), "--hosts="+hosts, "--keep")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Process.Signal(syscall.SIGTERM)
		c.Wait()
	})
	d := &demo{t: t}
	found := map[string]*string{`ssh -N -L 9285:(\S+) `: &d.socket, `enter a host: +nsenter --net=(\S+)`: &d.host, `ip netns exec (\S+) sh`: &d.container}
	var text strings.Builder
	for lines := bufio.NewScanner(out); lines.Scan(); {
		text.WriteString(lines.Text() + "\n")
		for pattern, value := range found {
			if m := regexp.MustCompile(pattern).FindStringSubmatch(lines.Text()); m != nil {
				*value = m[1]
			}
		}
		if strings.Contains(lines.Text(), "Processes that are still inside") {
			go func() { // else it would wait for a reader
				for lines.Scan() {
				}
			}()
			break
		}
	}
	if d.socket == "" || d.host == "" || d.container == "" {
		t.Fatalf("the demo prints\n%s", text.String())
	}
	return d
}

// serve serves the status socket over TCP, as "ssh -L" does.
func (d *demo) serve() (url string) {
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = "http", "flanneld", r.In.Host
		},
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", d.socket)
		}},
		FlushInterval: -1,
	}
	server := httptest.NewServer(proxy)
	d.t.Cleanup(server.CloseClientConnections)
	return server.URL
}

// sh runs a command on the first host.
func (d *demo) sh(command string) {
	d.t.Helper()
	if out, err := exec.Command("nsenter", "--net="+d.host, "bash", "-c", command).CombinedOutput(); err != nil {
		d.t.Fatalf("%s: %v: %s", command, err, out)
	}
}

// TestPageOfARealNetwork: five hosts with traffic; a repair, and a peer that is cut off, are shown
// while they happen.
func TestPageOfARealNetwork(t *testing.T) {
	d := startDemo(t, "5")
	url := d.serve()
	var tabs []*tab
	for _, on := range []screen{desktop(), phone()} {
		for _, on.dark = range []bool{false, true} {
			p := open(t, url, on)
			p.text("#verdict", "ok")
			p.text("#peers-count", "4 peers")
			p.text("#legend", "ok")
			tabs = append(tabs, p)
		}
	}
	p := tabs[0]
	p.shows("all peers answer probes", "document.querySelectorAll('#rows td.state').length === 4 && [...document.querySelectorAll('#rows td.state')].every((e) => e.innerText === 'ok')")
	peer := p.column("subnet")[0]
	ip := p.column("ip")[0]

	target := strings.TrimSuffix(p.column("subnet")[3], "/24")
	traffic := exec.Command("ip", "netns", "exec", d.container, "bash", "-c", "while :; do ping -q -s 1400 -i 0.001 -c $((RANDOM % 9000 + 1000)) "+target+"; sleep 1; done")
	traffic.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := traffic.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Kill(-traffic.Process.Pid, syscall.SIGKILL) // the ping as well
		traffic.Wait()
	})
	p.shows("traffic", "['sent', 'received'].every((way) => / (M|G)bit/.test(document.querySelector(`#rate-${way}`).innerText))")

	d.sh("ip route del " + peer)
	p.text("#repairs", "+1 route")
	p.text("#repairs", "ip route replace "+peer)
	if os.Getenv("SCREENSHOTS") != "" {
		for range 4 { // for a chart that can be looked at
			p.do(chromedp.Sleep(20 * time.Second))
		}
	}
	for i, p := range tabs {
		p.text("#repairs", "+1 route")
		p.screenshot("real-"+[]string{"1280-light", "1280-dark", "390-light", "390-dark"}[i], true)
	}

	d.sh("nft add table ip cut && nft 'add chain ip cut out { type filter hook output priority 0; }' && nft add rule ip cut out ip daddr " + ip + " drop")
	p.text("#rows td.state", "failing")
	p.text("#verdict", "degraded")
	p.text("#rows", "does not answer probes since")
	for i, p := range tabs {
		p.text("#conditions", "peers do not answer probes")
		p.screenshot("real-broken-"+[]string{"1280-light", "1280-dark", "390-light", "390-dark"}[i], true)
	}
	d.sh("nft delete table ip cut")
	p.text("#verdict-word", "ok")
}
