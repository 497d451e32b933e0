package daemon

import (
	"testing"
	"time"

	"flanneld/pkg/lease"
	"flanneld/pkg/prober"
	"flanneld/pkg/status"
)

func TestProbesInTheStatus(t *testing.T) {
	at := time.Date(2026, 8, 1, 9, 30, 0, 0, time.Local)
	for _, c := range []struct {
		result prober.Result
		want   status.Probe
	}{
		{prober.Result{Lost: 9}, status.Probe{State: status.ProbeUnknown, Loss: -1}},
		{prober.Result{State: prober.OK, RTT: 2, Last: 1, Heard: at}, status.Probe{State: status.ProbeOK, RTT: 1, Answered: at}},
		{prober.Result{State: prober.Lossy, Loss: .25}, status.Probe{State: status.ProbeLossy, Loss: .25, Fault: "25 % of the probes are lost"}},
		{prober.Result{State: prober.MTU}, status.Probe{State: status.ProbeFailing, Fault: "full-size packets are lost: the path has a smaller MTU"}},
		{prober.Result{State: prober.Failing, Loss: 1, Since: at}, status.Probe{State: status.ProbeFailing, Loss: 1, Fault: "does not answer probes since 2026-08-01 09:30:00"}},
	} {
		if got := statusProbe(c.result); got != c.want {
			t.Errorf("%+v: got %+v, want %+v", c.result, got, c.want)
		}
	}
}

func TestProbesThatAreOffAreNotUnknown(t *testing.T) {
	d := &daemon{}
	if got := d.probes()(lease.Subnets{}); got.State != status.ProbeOff {
		t.Errorf("status: %+v", got)
	}
	if d.probeMetrics() != nil {
		t.Error("metrics of probes")
	}
}
