package etcdv2_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"flanneld/pkg/lease"
	"flanneld/pkg/registry/etcdv2"
)

// FuzzAnswer replaces etcd by a server with arbitrary answers: each call returns, with leases of
// subnets or with an error.
func FuzzAnswer(f *testing.F) {
	const node = `{"key":"/coreos.com/network/subnets/10.42.7.0-24","value":"{\"PublicIP\":\"198.51.100.7\"}","ttl":86400,"modifiedIndex":7,"createdIndex":7}`
	f.Add(200, "application/json", "7", `{"action":"get","node":{"key":"/coreos.com/network/subnets","dir":true,"nodes":[`+node+`,null,{"dir":true,"nodes":[`+node+`]}]}}`)
	f.Add(200, "application/json", "9", `{"action":"set","node":`+node+`,"prevNode":`+node+`}`)
	f.Add(200, "application/json", "-1", `{"action":"delete","node":{"key":"/coreos.com/network/subnets","dir":true}}`)
	f.Add(404, "application/json", "9", `{"errorCode":100,"message":"Key not found","cause":"/","index":9}`)
	f.Add(400, "application/json", "9", `{"errorCode":401,"message":"The event in requested index is outdated and cleared","index":5000}`)
	f.Add(307, "text/html", "", "<html>")
	r := api.Open(f, etcdv2.Options{Endpoints: []string{"http://etcd.invalid:2379"}, Prefix: prefix})
	r.SetPoll(20 * time.Millisecond) // the wait of a watch without an answer
	var answer atomic.Pointer[func() *http.Response]
	r.SetServer(func() *http.Response { return (*answer.Load())() })
	f.Fuzz(func(t *testing.T, s int, m, i, b string) {
		if s < 200 || s > 599 || strings.ContainsAny(m+i, "\r\n\x00") {
			return // not an HTTP response
		}
		respond := func() *http.Response {
			header := http.Header{"Content-Type": {m}, "X-Etcd-Index": {i}}
			return &http.Response{StatusCode: s, Status: http.StatusText(s), Header: header, Body: io.NopCloser(strings.NewReader(b))}
		}
		answer.Store(&respond)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		check := func(call string, l lease.Lease) {
			if v4, v6 := l.Subnets.V4(), l.Subnets.V6(); v4 != v4.Masked() || !v4.Addr().Is4() || v6 != v6.Masked() {
				t.Errorf("%s returns %+v", call, l)
			}
		}
		if l, err := r.List(ctx); err == nil {
			for _, one := range l.Leases {
				check("list", one)
			}
			for _, bad := range l.Invalid {
				_ = bad.Err.Error()
			}
		}
		_, _ = r.Config(ctx)
		if e, err := r.Get(ctx, subnet7); err == nil && e.Invalid == nil {
			check("get", e.Lease)
		}
		_, _ = r.Update(ctx, lease7, attrs7, time.Hour)
		if events, _, err := r.Watch(ctx, 7); err == nil {
			for _, e := range events {
				if e.Invalid == nil {
					check("watch", e.Lease)
				}
			}
		}
		if ctx.Err() != nil {
			t.Error("the calls do not come back")
		}
	})
}
