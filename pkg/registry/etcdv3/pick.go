package etcdv3

import (
	"sync"
	"time"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/base"
	"google.golang.org/grpc/codes"
)

// avoidTime is how long an endpoint that accepted a request and did not serve it is used only if no
// other is connected. Such an endpoint is a member without a leader, or one that hangs. The outlier
// detection of gRPC needs several failed requests and belongs to its xDS packages.
const avoidTime = 5 * time.Second

const pickerName = "flanneld_turns"

func init() { balancer.Register(base.NewBalancerBuilder(pickerName, turnsBuilder{}, base.Config{})) }

// turnsBuilder creates pickers that use the endpoints in turn.
type turnsBuilder struct{}

// Build implements base.PickerBuilder.
func (turnsBuilder) Build(info base.PickerBuildInfo) balancer.Picker {
	if len(info.ReadySCs) == 0 {
		return base.NewErrPicker(balancer.ErrNoSubConnAvailable)
	}
	p := &turns{}
	for conn := range info.ReadySCs {
		p.all = append(p.all, &turn{conn: conn})
	}
	return p
}

// turns uses the ready connections in turn. A change of these creates a new one, which does not
// know which endpoints to avoid.
type turns struct {
	mu   sync.Mutex
	all  []*turn
	next int
}

type turn struct {
	conn  balancer.SubConn
	avoid time.Time // until then
}

// Pick implements balancer.Picker.
func (p *turns) Pick(balancer.PickInfo) (balancer.PickResult, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	picked := p.all[p.next%len(p.all)]
	for i := range p.all {
		if t := p.all[(p.next+i)%len(p.all)]; now.After(t.avoid) {
			picked = t
			p.next += i
			break
		}
	}
	p.next++
	return balancer.PickResult{SubConn: picked.conn, Done: func(d balancer.DoneInfo) { p.done(picked, d.Err) }}, nil
}

// done records the result of a request.
func (p *turns) done(t *turn, err error) {
	if err == nil {
		return
	}
	if code, _ := facts(err); code == codes.Unavailable || code == codes.DeadlineExceeded {
		p.mu.Lock()
		t.avoid = time.Now().Add(avoidTime)
		p.mu.Unlock()
	}
}
