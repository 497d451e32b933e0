package doctor

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// kubeRules are rules as kube-proxy and kubelet write them.
const kubeRules = `*mangle
:PREROUTING ACCEPT [0:0]
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-A - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-NODEPORTS -p tcp -m comment --comment "default/web" -m tcp --dport 30080 -j KUBE-SVC-A
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-SERVICES -d 10.96.0.10/32 -p udp -m comment --comment "kube-system/kube-dns:dns cluster IP" -m udp --dport 53 -j KUBE-SVC-A
-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-SVC-A -j KUBE-MARK-MASQ
-A KUBE-SVC-A -m statistic --mode random --probability 0.50000000000 -j DNAT --to-destination 10.42.8.9:53
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL -m comment --comment "kubernetes firewall for dropping marked packets" -m mark --mark 0x8000/0x8000 -j DROP
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
`

// TestRulesOfOtherPrograms: on hosts with rules of docker, ufw and kube-proxy nothing is wrong or
// unknown once flanneld has added its own, and what is wrong without them is named.
func TestRulesOfOtherPrograms(t *testing.T) {
	read := func(name string) string {
		text, err := os.ReadFile("../iptables/testdata/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	// ours adds flanneld's accepts.
	ours := func(rules string) string {
		rules = strings.Replace(rules, "-A FORWARD", "-A FORWARD -s 10.42.0.0/16 -j ACCEPT\n-A FORWARD -d 10.42.0.0/16 -j ACCEPT\n-A FORWARD", 1)
		return strings.Replace(rules, "*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n", "*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n-A PREROUTING -s 10.42.0.0/16 -d 10.42.7.0/24 -j ACCEPT\n", 1)
	}
	for _, x := range []struct{ name, rules, fails, summary string }{
		{"docker 20", ours(read("docker-20.rules")), "", ""},
		{"docker 20 alone", read("docker-20.rules"), aboutForward, "new ICMP packets from containers of other hosts to those of this host are dropped by the policy of chain FORWARD"},
		{"docker 28", ours(read("docker-28.rules")), "", ""},
		{"docker 28 alone", read("docker-28.rules"), aboutForward, `rule "-A PREROUTING -d 10.42.7.2/32 ! -i docker0 -j DROP" in iptables-legacy table raw`},
		{"kube-proxy", kubeRules, "", ""},
		{"ufw", ours(read("ufw.rules")), aboutInput, "are dropped by the policy of chain INPUT"},
		{"ufw opened", ours(strings.Replace(read("ufw.rules"), "COMMIT", "-A ufw-user-input -p udp -m udp --dport 8472 -j ACCEPT\nCOMMIT", 1)), "", ""},
	} {
		f := healthy()
		f.local.rules = x.rules
		for i, c := range Run(t.Context(), filterChecks(), f.inputs(), nil).Findings {
			switch {
			case i == 0 && x.fails != "" && (c.ID != x.fails || c.Status != Fail || !strings.Contains(c.Summary, x.summary)):
				t.Errorf("%s: %s %s: %s", x.name, c.ID, c.Status, c.Summary)
			case c.Status == Unknown, c.Status == Fail && !slices.Contains([]string{x.fails, "FL-FIREWALL-TOOL"}, c.ID):
				t.Errorf("%s: %s %s: %s", x.name, c.ID, c.Status, c.Summary)
			}
		}
	}
}
