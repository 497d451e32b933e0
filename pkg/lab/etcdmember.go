package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	client "go.etcd.io/etcd/client/v3"

	"flanneld/pkg/lab/etcdkeys"
	"flanneld/pkg/lab/wait"
)

// Member is an additional member of a lab's etcd, in its own process.
type Member struct {
	Endpoint string

	lab     *Lab
	config  etcdConfig
	process *Process
}

// AddMember adds a member to etcd and waits until it serves. The lab needs the option EtcdCluster.
// n is the number of the member, from 1 on; no number may be used twice. others are the other
// additional members.
func (e *Etcd) AddMember(ctx context.Context, n int, others ...*Member) (*Member, error) {
	m := &Member{
		Endpoint: fmt.Sprintf("http://%s:%d", e.addr, 2379+100*n),
		lab:      e.lab,
		config: etcdConfig{
			Dir: filepath.Join(e.lab.Dir, fmt.Sprint("etcd", n)), SlowElections: true,
			Name: fmt.Sprint("lab", n), Peer: fmt.Sprintf("127.0.0.1:%d", 2380+100*n),
		},
	}
	m.config.Endpoint = m.Endpoint
	err := e.Members(ctx, others, func(ctx context.Context, c *client.Client) error {
		resp, err := c.MemberAdd(ctx, []string{"http://" + m.config.Peer})
		if err != nil {
			return err
		}
		var all []string
		for _, one := range resp.Members {
			name := one.Name
			if one.ID == resp.Member.ID {
				name = m.config.Name
			}
			all = append(all, name+"="+one.PeerURLs[0])
		}
		m.config.Members = strings.Join(all, ",")
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("add etcd member: %w", err)
	}
	return m, m.Start(ctx)
}

// Start starts a member that was ended.
func (m *Member) Start(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the binary to run etcd with: %w", err)
	}
	env, err := etcdEnv(m.config)
	if err != nil {
		return err
	}
	m.process, err = m.lab.startProcess(m.lab.Fabric, Command{Path: self, Env: []string{env}}, m.config.Dir+".log")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := m.process.WaitReady(ctx); err != nil {
		return fmt.Errorf("start etcd member: %w", err)
	}
	return nil
}

// Kill kills the member with SIGKILL.
func (m *Member) Kill(ctx context.Context) error {
	if _, err := m.process.end(ctx, syscall.SIGKILL); err != nil {
		return fmt.Errorf("end etcd member: %w", err)
	}
	return nil
}

// Members calls f with a client of the first member and of others.
func (e *Etcd) Members(ctx context.Context, others []*Member, f func(context.Context, *client.Client) error) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	c, err := etcdkeys.V3{Access: e.cluster(others)}.Client(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	return f(ctx, c)
}

// cluster returns the access to all members.
func (e *Etcd) cluster(others []*Member) etcdkeys.Access {
	a := e.access
	a.Endpoints, a.Timeout = e.endpoints(others), 2*time.Second
	return a
}

func (e *Etcd) endpoints(others []*Member) []string {
	all := []string{e.Endpoint()}
	for _, m := range others {
		all = append(all, m.Endpoint)
	}
	return all
}

// Leader returns the endpoint of the leader among the first member and others. It waits until there
// is one.
func (e *Etcd) Leader(ctx context.Context, others ...*Member) (leader string, err error) {
	err = e.Members(ctx, others, func(ctx context.Context, c *client.Client) error {
		return wait.Until(ctx, func() error {
			for _, endpoint := range e.endpoints(others) {
				short, cancel := context.WithTimeout(ctx, 2*time.Second)
				s, err := c.Status(short, endpoint)
				cancel()
				if err == nil && s.Leader == s.Header.MemberId {
					leader = endpoint
					return nil
				}
			}
			return errors.New("etcd has no leader")
		})
	})
	return leader, err
}

// Cluster returns the keys of an API through any member that answers. Its connections end with ctx.
func (e *Etcd) Cluster(ctx context.Context, api string, others ...*Member) (etcdkeys.Store, error) {
	if api == "v3" {
		return etcdkeys.V3{Access: e.cluster(others)}.Keep(ctx)
	}
	v2, err := etcdkeys.OpenV2(e.cluster(others))
	if err == nil {
		context.AfterFunc(ctx, v2.Close)
	}
	return v2, err
}
