package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"flanneld/pkg/lab"
)

// A nonsense is an etcd whose answers are immediate and invalid in one way. Otherwise it behaves
// like a correct one with a single client, except that it has no history.
type nonsense struct {
	what     string
	requests atomic.Int64 // connections without one, too

	mu     sync.Mutex
	index  int64
	values map[string]string
}

func newNonsense(what string) *nonsense {
	return &nonsense{what: what, index: 10, values: map[string]string{defaultPrefix + "/config": vxlanConfig}}
}

func (n *nonsense) is(what string) bool { return n.what == what }

// put writes a key, and returns the index of that.
func (n *nonsense) put(key, value string) int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.index++
	n.values[key] = value
	return n.index
}

func (n *nonsense) get(key string) (value string, index int64, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	value, ok = n.values[key]
	return value, n.index, ok
}

// own is the key of the only lease.
func (n *nonsense) own() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	for key := range n.values {
		if strings.Contains(key, "/subnets/") {
			return key
		}
	}
	return defaultPrefix + "/subnets/10.42.7.0-24"
}

// next is the index of another event.
func (n *nonsense) next() int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.index++
	return n.index
}

type v2Node struct {
	Key           string   `json:"key"`
	Value         string   `json:"value,omitempty"`
	Dir           bool     `json:"dir,omitempty"`
	Nodes         []v2Node `json:"nodes,omitempty"`
	ModifiedIndex int64    `json:"modifiedIndex"`
	CreatedIndex  int64    `json:"createdIndex"`
	TTL           int64    `json:"ttl,omitempty"`
	Expiration    string   `json:"expiration,omitempty"`
}

// ServeHTTP is the v2 API.
func (n *nonsense) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n.requests.Add(1)
	key, _ := strings.CutPrefix(r.URL.Path, "/v2/keys")
	value, index, ok := n.get(key)
	answer := func(code int, body any) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Etcd-Index", fmt.Sprint(index))
		w.WriteHeader(code)
		json.NewEncoder(w).Encode(body)
	}
	refuse := func(status, code int) {
		answer(status, map[string]any{"errorCode": code, "message": "refused", "cause": key, "index": index})
	}
	entry := func(action, value string, at int64) {
		ttl := int64(86400)
		if n.is("leases end at once") {
			ttl = 0
		}
		answer(http.StatusOK, map[string]any{"action": action, "node": v2Node{Key: key, Value: value, ModifiedIndex: at, CreatedIndex: at, TTL: ttl,
			Expiration: time.Now().Add(time.Duration(ttl) * time.Second).UTC().Format(time.RFC3339Nano)}})
	}
	switch config := strings.HasSuffix(key, "/config"); {
	case config && n.is("config is missing"):
		refuse(http.StatusNotFound, 100)
	case config && n.is("config is invalid"):
		entry("get", fmt.Sprintf(`{"Network":"nonsense %d"}`, n.next()), index)
	case n.is("every answer is an error"):
		refuse(http.StatusInternalServerError, 300)
	case n.is("no answer is JSON"):
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"node`)
	case r.Method == http.MethodPut && n.is("every write conflicts"):
		refuse(http.StatusPreconditionFailed, 105)
	case r.Method == http.MethodPut:
		r.ParseForm()
		at := n.put(key, r.Form.Get("value"))
		index = at
		entry("set", r.Form.Get("value"), at)
	case r.URL.Query().Get("wait") == "true":
		n.watchV2(r, key, answer, refuse)
	case strings.HasSuffix(key, "/subnets"):
		dir := v2Node{Key: key, Dir: true}
		if n.is("the lease is never listed") {
			answer(http.StatusOK, map[string]any{"action": "get", "node": dir})
			return
		}
		if own := n.own(); own != "" {
			if value, at, ok := n.get(own); ok {
				dir.Nodes = append(dir.Nodes, v2Node{Key: own, Value: value, ModifiedIndex: at, CreatedIndex: at, TTL: 86400, Expiration: time.Now().Add(24 * time.Hour).UTC().Format(time.RFC3339Nano)})
			}
		}
		answer(http.StatusOK, map[string]any{"action": "get", "node": dir})
	case ok && n.is("the lease is another each time") && !config:
		entry("get", phantomValue(fmt.Sprintf("203.0.113.%d", 1+n.next()%200), "0e:00:00:00:00:01"), index)
	case ok:
		entry("get", value, index)
	default:
		refuse(http.StatusNotFound, 100)
	}
}

// watchV2 answers a long-poll.
func (n *nonsense) watchV2(r *http.Request, key string, answer func(int, any), refuse func(int, int)) {
	event := func(action string, e v2Node) { answer(http.StatusOK, map[string]any{"action": action, "node": e}) }
	switch n.what {
	case "the watch brings one event again and again":
		event("set", v2Node{Key: key + "/10.42.9.0-24", Value: "nonsense", ModifiedIndex: 3, CreatedIndex: 3})
	case "the watch brings ever more events":
		at := n.next()
		event("set", v2Node{Key: key + "/10.42.9.0-24", Value: "nonsense", ModifiedIndex: at, CreatedIndex: at})
	case "the watch brings nothing":
		at := n.next()
		event("set", v2Node{Key: key, Dir: true, ModifiedIndex: at, CreatedIndex: at})
	case "the history is always lost":
		refuse(http.StatusBadRequest, 401)
	case "the lease is another each time":
		at := n.next()
		event("set", v2Node{Key: n.own(), Value: phantomValue(fmt.Sprintf("203.0.113.%d", 1+at%200), "0e:00:00:00:00:01"), ModifiedIndex: at, CreatedIndex: at})
	case "every watch fails":
		refuse(http.StatusInternalServerError, 300)
	default:
		<-r.Context().Done()
	}
}

// v3Nonsense is the same in the v3 API.
type v3Nonsense struct {
	*nonsense
	pb.UnimplementedKVServer
	pb.UnimplementedWatchServer
	pb.UnimplementedLeaseServer
}

func (n *v3Nonsense) header() *pb.ResponseHeader {
	_, index, _ := n.get("")
	return &pb.ResponseHeader{Revision: index}
}

func (n *v3Nonsense) Range(_ context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	n.requests.Add(1)
	key := string(r.Key)
	config := strings.HasSuffix(key, "/config")
	kv := &mvccpb.KeyValue{Key: r.Key, CreateRevision: 3, ModRevision: n.header().Revision}
	switch {
	case n.is("every answer is an error"):
		return nil, status.Error(codes.Internal, "nonsense")
	case config && n.is("config is missing"), !config && n.is("the lease is never listed"):
		return &pb.RangeResponse{Header: n.header()}, nil
	case config && n.is("config is invalid"):
		kv.Value = fmt.Appendf(nil, `{"Network":"nonsense %d"}`, n.next())
	case len(r.RangeEnd) > 0 && !config:
		kv.Key = []byte(n.own())
		fallthrough
	default:
		value, _, ok := n.get(string(kv.Key))
		if n.is("every page has a next one") && !ok {
			value, ok = phantomValue("203.0.113.1", "0e:00:00:00:00:01"), true
		}
		if !ok {
			return &pb.RangeResponse{Header: n.header()}, nil
		}
		if kv.Value = []byte(value); !config {
			kv.Lease = 7
			if n.is("the lease is another each time") {
				kv.ModRevision = n.next()
				kv.Value = []byte(phantomValue(fmt.Sprintf("203.0.113.%d", 1+kv.ModRevision%200), "0e:00:00:00:00:01"))
			}
		}
	}
	return &pb.RangeResponse{Header: n.header(), Kvs: []*mvccpb.KeyValue{kv}, Count: 1, More: n.is("every page has a next one")}, nil
}

func (n *v3Nonsense) Txn(_ context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	n.requests.Add(1)
	if n.is("every write conflicts") {
		return &pb.TxnResponse{Header: n.header()}, nil
	}
	for _, op := range r.Success {
		if p := op.GetRequestPut(); p != nil {
			n.put(string(p.Key), string(p.Value))
		}
	}
	return &pb.TxnResponse{Header: n.header(), Succeeded: true}, nil
}

func (n *v3Nonsense) ttl() int64 {
	if n.is("leases end at once") {
		return 0
	}
	return 86400
}

func (n *v3Nonsense) LeaseGrant(context.Context, *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	n.requests.Add(1)
	return &pb.LeaseGrantResponse{Header: n.header(), ID: 7, TTL: n.ttl()}, nil
}

func (n *v3Nonsense) LeaseRevoke(context.Context, *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	n.requests.Add(1)
	return &pb.LeaseRevokeResponse{Header: n.header()}, nil
}

func (n *v3Nonsense) LeaseTimeToLive(context.Context, *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	n.requests.Add(1)
	return &pb.LeaseTimeToLiveResponse{Header: n.header(), ID: 7, TTL: n.ttl(), GrantedTTL: 86400, Keys: [][]byte{[]byte(n.own())}}, nil
}

func (n *v3Nonsense) LeaseKeepAlive(s pb.Lease_LeaseKeepAliveServer) error {
	n.requests.Add(1)
	if _, err := s.Recv(); err != nil {
		return err
	}
	return s.Send(&pb.LeaseKeepAliveResponse{Header: n.header(), ID: 7, TTL: n.ttl()})
}

func (n *v3Nonsense) Watch(s pb.Watch_WatchServer) error {
	n.requests.Add(1)
	if _, err := s.Recv(); err != nil {
		return err
	}
	if n.is("every watch fails") {
		return status.Error(codes.Internal, "nonsense")
	}
	if n.is("the history is always lost") {
		return s.Send(&pb.WatchResponse{Header: n.header(), Created: true, Canceled: true, CompactRevision: 1000000})
	}
	if err := s.Send(&pb.WatchResponse{Header: n.header(), Created: true}); err != nil {
		return err
	}
	for {
		resp := &pb.WatchResponse{Header: n.header()}
		event := func(key string, revision int64, value string) {
			resp.Events = []*mvccpb.Event{{Kv: &mvccpb.KeyValue{Key: []byte(key), Value: []byte(value), CreateRevision: 3, ModRevision: revision, Lease: 7}}}
		}
		switch n.what {
		case "the watch brings one event again and again":
			event(defaultPrefix+"/subnets/10.42.9.0-24", 3, "nonsense")
		case "the watch brings ever more events":
			event(defaultPrefix+"/subnets/10.42.9.0-24", n.next(), "nonsense")
		case "the watch brings nothing":
		case "the watch brings parts of nothing":
			resp.Fragment = true
		case "the watch ends at once":
			return nil
		case "the lease is another each time":
			at := n.next()
			event(n.own(), at, phantomValue(fmt.Sprintf("203.0.113.%d", 1+at%200), "0e:00:00:00:00:01"))
		default:
			<-s.Context().Done()
			return nil
		}
		if err := s.Send(resp); err != nil {
			return err
		}
	}
}

// serve answers at an address of a host until the test ends.
func (n *nonsense) serve(c *cluster, h *lab.Host, api string) (url string) {
	c.t.Helper()
	l, err := h.NS.Listen(c.ctx, "tcp", "127.0.0.1:0")
	c.must(err)
	switch {
	case n.is("connections are closed"), n.is("connections are closed after a greeting"):
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				n.requests.Add(1)
				if n.is("connections are closed after a greeting") {
					conn.Write([]byte{0, 0, 0, 4, 0, 0, 0, 0, 0}) // HTTP/2 SETTINGS
				}
				conn.(*net.TCPConn).CloseWrite()
				conn.Close()
			}
		}()
		c.t.Cleanup(func() { l.Close() })
	case api == "v3":
		s := grpc.NewServer()
		v3 := &v3Nonsense{nonsense: n}
		pb.RegisterKVServer(s, v3)
		pb.RegisterWatchServer(s, v3)
		pb.RegisterLeaseServer(s, v3)
		go s.Serve(l)
		c.t.Cleanup(s.Stop)
	default:
		s := &http.Server{Handler: n}
		go s.Serve(l)
		c.t.Cleanup(func() { s.Close() })
	}
	return "http://" + l.Addr().String()
}

// nonsenseRun is a daemon before a nonsense, what it had asked and used when it was measured, and
// what it asked and used in the window after that.
type nonsenseRun struct {
	api string
	*nonsense
	*lab.Process
	began     time.Time
	requests  int64
	usage     lab.Usage
	rate, cpu float64 // requests a second, and the share of a processor
}

// measure begins a window.
func (r *nonsenseRun) measure(c *cluster) {
	r.requests = r.nonsense.requests.Load()
	r.usage = c.usage(r.Process)
}

// judge ends a measurement, and reports excessive requests or resources.
func (r *nonsenseRun) judge(c *cluster, window time.Duration) error {
	usage := c.usage(r.Process)
	r.rate = float64(r.nonsense.requests.Load()-r.requests) / window.Seconds()
	r.cpu = (usage.CPU - r.usage.CPU).Seconds() / window.Seconds()
	if l := r.limits(); r.rate > l.most || r.cpu > l.share {
		return fmt.Errorf("%s, %s: %.1f requests a second, %.2f %% of a processor\n%s", r.api, r.what, r.rate, 100*r.cpu, tail(r.Logs(), 10))
	}
	return nil
}

// nonsenseLimits are what a daemon may do.
type nonsenseLimits struct {
	most, share float64 // requests a second, and share of a processor, in a window
	sustained   float64 // requests a second in the long run
	atOnce      float64 // additional requests in a burst, such as at the start
}

// limits are higher for a nonsense that may be a storm of changes.
func (r *nonsenseRun) limits() nonsenseLimits {
	if r.is("the lease is another each time") || r.is("the watch brings ever more events") {
		return nonsenseLimits{most: 120, share: 0.15, sustained: 100, atOnce: 2000}
	}
	return nonsenseLimits{most: 3.5, share: 0.03, sustained: 3.5, atOnce: 150}
}

// TestNonsenseFromEtcd: if etcd answers at once, but in ways that require another request, the
// daemon sends a few requests in a row and then periodic ones, at almost no cost.
func TestNonsenseFromEtcd(t *testing.T) {
	t.Parallel()
	all := []string{
		"config is missing", "config is invalid", "every answer is an error", "no answer is JSON", "every write conflicts", "leases end at once",
		"the lease is never listed", "the lease is another each time", "the watch brings ever more events",
		"the watch brings one event again and again", "the watch brings nothing", "the watch brings parts of nothing", "the watch ends at once", "the history is always lost", "every watch fails",
		"connections are closed", "connections are closed after a greeting", "every page has a next one",
	}
	c := newCluster(t, lab.Options{Hosts: 2 * len(all)})
	var runs []*nonsenseRun
	for i, what := range all {
		for j, api := range []string{"v2", "v3"} {
			n, h := newNonsense(what), c.Hosts[2*i+j]
			url := n.serve(c, h, api)
			p := c.launch(h, "-etcd-endpoints="+url, "-etcd-api="+api, "-iptables-forward-rules=false")
			runs = append(runs, &nonsenseRun{api: api, nonsense: n, Process: p, began: time.Now()})
		}
	}
	const window = 6 * time.Second
	look := func() (violations []string) {
		for _, r := range runs {
			r.measure(c)
		}
		time.Sleep(window) // it is what happens in it that is measured
		for _, r := range runs {
			if err := r.judge(c, window); err != nil {
				violations = append(violations, err.Error())
			}
		}
		return violations
	}
	// Pauses are as long as they get after about 15 s, on a slow machine later.
	c.within(100*time.Second, "all of them ask seldom", func() error {
		if violations := look(); len(violations) > 0 {
			return errors.New(strings.Join(violations, "\n"))
		}
		return nil
	})
	for _, r := range runs {
		total, allowed := r.nonsense.requests.Load(), r.limits().atOnce+r.limits().sustained*time.Since(r.began).Seconds()
		t.Logf("%s, %-45s %6.1f requests a second, %5.2f %% of a processor, %5d requests in all", r.api, r.what, r.rate, 100*r.cpu, total)
		if float64(total) > allowed {
			t.Errorf("%s, %s: %d requests in all, %.0f are allowed\n%s", r.api, r.what, total, allowed, tail(r.Logs(), 10))
		}
	}
}

// tail returns the last lines of a text.
func tail(text string, n int) string {
	lines := strings.SplitAfter(text, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "")
}
