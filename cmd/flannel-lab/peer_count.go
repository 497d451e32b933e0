package main

import (
	"context"
	"flanneld/pkg/lab/logs"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"flanneld/pkg/lab"
	"flanneld/pkg/lab/etcdkeys"
)

// byPeerCount measures one TCP stream between two peers with different numbers of other peers in
// their forwarding tables.
func (b *bench) byPeerCount(ctx context.Context) ([][]string, error) {
	var paths []path
	for _, o := range append([]overlay{b.udp}, b.manyPeers...) {
		if o.etcdPeers > 0 {
			if err := b.populate(ctx, o); err != nil {
				return nil, fmt.Errorf("%s: %w", o.name, err)
			}
		}
		p, err := containerPath(ctx, o)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", o.name, err)
		}
		p.name = plural(o.etcdPeers+1, "peer")
		paths = append(paths, p)
	}
	figures, err := b.series(ctx, "TCP, one stream", paths, b.plan.peerCountRounds(), streams(1))
	if err != nil {
		return nil, err
	}
	rows := [][]string{{"", "TCP, 1 STREAM", "× 1 PEER", "LOWEST RUN", "HIGHEST RUN", "WANTED"}}
	for i, f := range figures {
		rows = append(rows, []string{
			paths[i].name, gigabits(f.rate()), fmt.Sprintf("%.2f", f.rate()/figures[0].rate()),
			gigabits(quantile(f.runs, 0)), gigabits(quantile(f.runs, 1)), "all within the noise",
		})
	}
	return rows, nil
}

// populate writes the leases of an overlay's peers that exist in etcd only, starts its daemons and
// waits until they have programmed them.
func (b *bench) populate(ctx context.Context, o overlay) error {
	b.progress("writing %d leases and starting flanneld on %d hosts", o.etcdPeers, len(o.hosts))
	entries := make([]etcdkeys.Entry, o.etcdPeers)
	for i := range entries {
		key, value := etcdPeer(o.network, i)
		entries[i] = etcdkeys.Entry{Key: o.prefix + "/subnets/" + key, Value: value}
	}
	if err := b.lab.Etcd.PutAll(ctx, entries); err != nil {
		return err
	}
	if err := b.startNetwork(ctx, o); err != nil {
		return err
	}
	for _, h := range o.hosts {
		count := 0
		err := await(ctx, fmt.Sprintf("%d tunnel entries in the log of %s", o.etcdPeers+len(o.hosts), h.Name), patience, func() (bool, error) {
			var err error
			count, err = tunnelEntries(summaries(h.Flanneld(), "programmed the kernel"))
			return count == o.etcdPeers+len(o.hosts), err // and the entry of its own subnet
		})
		if err != nil {
			return fmt.Errorf("%w: there are %d", err, count)
		}
		b.progress("%s has programmed %d tunnel entries", h.Name, count)
	}
	return nil
}

// etcdPeer returns key and lease of peer i, as the udp backend writes it. Its subnet is outside the
// first /16 of the network, from which real hosts lease; its address is in 198.18.0.0/15, which no
// real host has (RFC 2544).
func etcdPeer(network netip.Prefix, i int) (key, value string) {
	n := network.Addr().As4()
	subnet := netip.AddrFrom4([4]byte{n[0], n[1] + 1 + byte(i>>8), byte(i), 0})
	public := netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
	return fmt.Sprintf("%s-24", subnet), fmt.Sprintf(`{"PublicIP":"%s","PublicIPv6":null}`, public)
}

// summaries returns what flanneld has done to the kernel, by the lines of its log with some words,
// such as "+1 link, +2 route".
func summaries(p *lab.Process, words ...string) (all []string) {
	const field = ` ops="`
	for _, line := range logs.Find(p.Logs(), append(words, field)...) {
		_, after, _ := strings.Cut(line, field)
		summary, _, _ := strings.Cut(after, `"`)
		all = append(all, summary)
	}
	return all
}

// tunnelEntries returns the number of tunnel entries in the summaries.
func tunnelEntries(summaries []string) (n int, err error) {
	for part := range strings.SplitSeq(strings.Join(summaries, ", "), ", ") {
		if number, isEntry := strings.CutSuffix(part, " tunnel entry"); isEntry && number[0] != '~' {
			more, err := strconv.Atoi(number)
			if err != nil {
				return 0, fmt.Errorf("count the tunnel entries in %q: %w", part, err)
			}
			n += more
		}
	}
	return n, nil
}

func gigabits(rate float64) string { return fmt.Sprintf("%.2f Gbit/s", rate/1e9) }

// plural returns a number with its noun, with a comma at the thousands.
func plural(n int, thing string) string {
	digits := strconv.Itoa(n)
	if n >= 1000 {
		digits = fmt.Sprintf("%d,%03d", n/1000, n%1000)
	}
	if n == 1 {
		return digits + " " + thing
	}
	return digits + " " + thing + "s"
}
