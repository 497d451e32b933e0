package daemon

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"flanneld/pkg/api"
	"flanneld/pkg/backend"
	"flanneld/pkg/condition"
	"flanneld/pkg/dataplane"
	"flanneld/pkg/driver"
	"flanneld/pkg/host"
	"flanneld/pkg/lease"
	"flanneld/pkg/prober"
	"flanneld/pkg/reconcile"
	"flanneld/pkg/status"
)

// memory is a kernel that does what it is told, except for the routes of some peers.
type memory struct {
	dataplane.State
	refuse bool
}

func (k *memory) Snapshot(_ dataplane.Scope, s *dataplane.State) error {
	s.NextHops = nil // as in an old kernel
	s.Add(k.State)
	return nil
}

func (k *memory) Events() <-chan driver.Event { return nil }

func (k *memory) Apply(ops []dataplane.Op) []error {
	errs := make([]error, len(ops))
	for i, op := range ops {
		if key, _ := dataplane.KindRoute.Of(op); k.refuse && key.Dst.IsValid() && key.Dst.Addr().As4()[2]%2 == 0 {
			errs[i] = fmt.Errorf("no")
			continue
		}
		k.Update(op)
	}
	return errs
}

// ofMany returns a daemon with very many peers, half of which the kernel may refuse.
func ofMany(t testing.TB, peers int, refuse bool) *daemon {
	t.Helper()
	vxlan, err := backend.ParseNetwork([]byte(`{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}`))
	if err != nil {
		t.Fatal(err)
	}
	of := func(i int) *lease.Lease {
		var subnet, host [4]byte
		binary.BigEndian.PutUint32(subnet[:], 10<<24+uint32(i+1)<<8)
		binary.BigEndian.PutUint32(host[:], 100<<24+uint32(i+1))
		return &lease.Lease{Subnets: lease.SubnetsOf(netip.PrefixFrom(netip.AddrFrom4(subnet), 24)), Attrs: lease.Attrs{
			PublicIP: netip.AddrFrom4(host), BackendType: "vxlan",
			BackendData: fmt.Sprintf(`{"VNI":1,"VtepMAC":"02:00:00:%02x:%02x:%02x"}`, host[1], host[2], host[3]),
		}}
	}
	leases := make([]*lease.Lease, peers)
	for i := range leases {
		leases[i] = of(i)
	}
	log := slog.New(slog.DiscardHandler)
	conditions := condition.NewList(log)
	view := lease.NewView(*of(60_000), leases, true)
	d := &daemon{options: Options{Probes: time.Second}, conditions: conditions, state: api.NewState(conditions), started: time.Now()}
	d.prober = prober.New(prober.Config{Interval: time.Second, Conditions: conditions})
	d.view.Store(&view)
	d.state.SetReady()
	loop := reconcile.New(reconcile.Config{
		Driver: &memory{dataplane.NewState(), refuse}, Backend: vxlan, Network: vxlan.V4.Network, Log: log, Conditions: conditions,
		BeforeApply: func() {}, Rivals: func([]lease.Lease) {}, Skipped: func([]backend.Skipped) {}, Missing: func([]reconcile.Missing) {}, Repaired: func(_, _ string) {}, Heartbeat: func() {},
	})
	addr := netip.MustParseAddr("198.51.100.7")
	loop.SetFacts(host.Facts{Uplink: "eth0", MTU: 1500, Addr: addr, PublicIP: addr}, nil)
	loop.SetView(view)
	loop.Pass(t.Context())
	d.parts.Store(&parts{network: vxlan, loop: loop, endpoints: []string{"https://user:secret@198.51.100.1:2379"}})
	return d
}

// TestStatusOfManyPeers: whether their objects are there or not. BenchmarkStatus and "make bench"
// measure the time.
func TestStatusOfManyPeers(t *testing.T) {
	const peers = 4000
	for _, refuse := range []bool{false, true} {
		d := ofMany(t, peers, refuse)
		doc := d.status()
		if text, err := json.Marshal(doc); err != nil || len(text) > 2<<20 {
			t.Errorf("%d bytes, %v", len(text), err)
		}
		c := doc.Count()
		want := status.Counts{Fine: peers}
		verdict := status.VerdictOK
		if refuse {
			want, verdict = status.Counts{Fine: peers / 2, Unprogrammed: peers / 2}, status.VerdictDegraded
		}
		if c != want || doc.Verdict != verdict || *doc.Drift != want.Unprogrammed {
			t.Errorf("refused %v: %+v, %s: %s, drift %d", refuse, c, doc.Verdict, doc.Reason, *doc.Drift)
		}
		if e := doc.Store.Endpoints; len(e) != 1 || e[0] != "https://198.51.100.1:2379" {
			t.Errorf("endpoints: %q", e)
		}
	}
}

// TestStatusFromTheStart: nothing is known yet, and nothing is 0 or false because of that.
func TestStatusFromTheStart(t *testing.T) {
	conditions := condition.NewList(slog.New(slog.DiscardHandler))
	d := &daemon{conditions: conditions, state: api.NewState(conditions), started: time.Now()}
	if got := d.status(); got.Verdict != status.VerdictDown || got.Drift != nil || got.Store.Up != nil || got.Store.ViewAge != nil || got.Lease.Expires != nil || got.Daemon.PID == 0 {
		t.Errorf("%+v", got)
	}
	d.parts.Store(&parts{previous: netip.MustParsePrefix("10.42.7.0/24")})
	if got := d.status(); got.Verdict != status.VerdictDegraded || got.Store.Up != nil {
		t.Errorf("after a restart, before the first request to etcd: %+v", got)
	}
	d.state.SetEtcdDown(time.Now())
	if got := d.status(); got.Verdict != status.VerdictDegraded || got.Lease.Subnet.String() != "10.42.7.0/24" || *got.Store.Up {
		t.Errorf("after a restart without etcd: %+v", got)
	}
}

// TestStatusOfAnUnreadKernel: what was true some time ago is unknown now.
func TestStatusOfAnUnreadKernel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := ofMany(t, 3, false)
		if got := d.status(); got.Drift == nil || *got.Drift != 0 || got.Verdict != status.VerdictOK {
			t.Errorf("before: %+v", got)
		}
		time.Sleep(time.Hour)
		if got := d.status(); got.Drift != nil || len(got.DriftKinds) > 0 || got.Count().Unknown != 3 || got.Verdict != status.VerdictDegraded {
			t.Errorf("after an hour without a pass: %+v", got)
		}
	})
}

// TestStatusOfTheBridge: only a recent reading for the present subnet says anything.
func TestStatusOfTheBridge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := ofMany(t, 3, false)
		subnet := d.view.Load().Own.Subnets.V4()
		docker := host.Bridge{Subnet: subnet, Device: "docker0", Addr: subnet.Addr().Next(), MTU: 1450}
		other := docker
		other.Subnet = netip.MustParsePrefix("10.99.0.0/24")
		check := func(when string, want *status.Bridge) {
			t.Helper()
			if got := d.status().Bridge; (got == nil) != (want == nil) || got != nil && *got != *want {
				t.Errorf("%s: %+v, want %+v", when, got, want)
			}
		}
		check("before it was read", nil)
		d.setBridge(&docker)
		check("docker0", &status.Bridge{Device: "docker0", Address: docker.Addr, MTU: 1450})
		d.setBridge(&host.Bridge{Subnet: subnet})
		check("without an interface", new(status.Bridge))
		time.Sleep(2 * bridgeAge)
		check("long after", nil)
		d.setBridge(&other)
		check("of another subnet", nil)
		d.setBridge(&docker)
		d.setBridge(nil)
		check("unreadable", nil)
	})
}

// TestProbesOfPeersThatAreNotProbed: that probes are turned off is known, whatever a peer's state.
func TestProbesOfPeersThatAreNotProbed(t *testing.T) {
	for off, want := range map[bool]status.ProbeState{true: status.ProbeOff, false: status.ProbeUnknown} {
		d := ofMany(t, 4, true)
		if off {
			d.options.Probes = 0
		}
		check := func(state string) {
			t.Helper()
			for _, p := range d.status().Peers {
				if p.Probe != want || p.RTT != nil || p.Loss != nil {
					t.Errorf("off %v, %s: %+v", off, state, p)
				}
			}
		}
		check("after a pass")
		d.parts.Store(&parts{})
		check("before a pass")
	}
}

func BenchmarkStatus(b *testing.B) {
	for _, refuse := range []bool{false, true} {
		b.Run(fmt.Sprint("refused=", refuse), func(b *testing.B) {
			d := ofMany(b, 20_000, refuse)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := json.Marshal(d.status()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkPassWhileAsked is of a whole pass of a host with very many peers, while nobody and while
// somebody asks for the status all the time.
func BenchmarkPassWhileAsked(b *testing.B) {
	for _, asked := range []bool{false, true} {
		b.Run(fmt.Sprint("asked=", asked), func(b *testing.B) {
			d := ofMany(b, 20_000, false)
			loop := d.parts.Load().loop
			stop := make(chan struct{})
			var asking sync.WaitGroup
			if asked {
				asking.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
							json.Marshal(d.status())
						}
					}
				})
			}
			for b.Loop() {
				loop.Reread()
				loop.Pass(b.Context())
			}
			close(stop)
			asking.Wait()
		})
	}
}
