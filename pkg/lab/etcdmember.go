package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	client "go.etcd.io/etcd/client/v3"

	"flanneld/pkg/lab/etcdkeys"
	"flanneld/pkg/lab/wait"
)

// A Member is a member of a lab's etcd. It runs in its own process, so that it can be killed and
// stopped. Its data survive everything except Wipe.
type Member struct {
	lab    *Lab
	config etcdConfig

	mu      sync.Mutex // held while the process is started or ended
	process *Process
}

// Endpoint returns the URL of the client API, as for -etcd-endpoints. It is reachable only from the
// namespaces of the lab.
func (m *Member) Endpoint() string { return m.config.Endpoint }

// Start starts a new member, or one that has ended, and waits until it serves.
func (m *Member) Start(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.start(ctx)
}

func (m *Member) start(ctx context.Context) error {
	if m.process != nil && !m.process.Exited() {
		return errors.New("start etcd: it is running")
	}
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
		return fmt.Errorf("start etcd: %w", err)
	}
	return nil
}

// Stop stops the member with SIGTERM.
func (m *Member) Stop(ctx context.Context) error { return m.end(ctx, syscall.SIGTERM) }

// Kill kills the member with SIGKILL.
func (m *Member) Kill(ctx context.Context) error { return m.end(ctx, syscall.SIGKILL) }

func (m *Member) end(ctx context.Context, s syscall.Signal) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := m.process.end(ctx, s); err != nil {
		return fmt.Errorf("end etcd: %w", err)
	}
	return nil
}

// Pause suspends the process: connections stay open and nothing answers, as if all packets were
// dropped.
func (m *Member) Pause() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.process.Pause()
}

// Resume resumes the process after Pause.
func (m *Member) Resume() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.process.Signal(syscall.SIGCONT)
}

// Wipe kills the member, removes its data and starts it again without keys.
func (m *Member) Wipe(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := m.process.end(ctx, syscall.SIGKILL); err != nil {
		return fmt.Errorf("end etcd: %w", err)
	}
	if err := os.RemoveAll(m.config.Dir); err != nil {
		return fmt.Errorf("wipe etcd: %w", err)
	}
	return m.start(ctx)
}

// AddMember adds a member to etcd and waits until it serves. The lab needs the option EtcdCluster.
// n is the number of the member, from 1 on; no number may be used twice. others are the other
// additional members.
func (e *Etcd) AddMember(ctx context.Context, n int, others ...*Member) (*Member, error) {
	config := etcdConfig{
		Dir: filepath.Join(e.lab.Dir, fmt.Sprint("etcd", n)), Endpoint: fmt.Sprintf("http://%s:%d", e.addr, 2379+100*n), SlowElections: true,
		Name: fmt.Sprint("lab", n), Peer: fmt.Sprintf("127.0.0.1:%d", 2380+100*n),
	}
	err := e.Members(ctx, others, func(ctx context.Context, c *client.Client) error {
		resp, err := c.MemberAdd(ctx, []string{"http://" + config.Peer})
		if err != nil {
			return err
		}
		var all []string
		for _, one := range resp.Members {
			name := one.Name
			if one.ID == resp.Member.ID {
				name = config.Name
			}
			all = append(all, name+"="+one.PeerURLs[0])
		}
		config.Members = strings.Join(all, ",")
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("add etcd member: %w", err)
	}
	m := &Member{lab: e.lab, config: config}
	return m, m.Start(ctx)
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
	a.Timeout = 2 * time.Second
	for _, m := range others {
		a.Endpoints = append(slices.Clip(a.Endpoints), m.Endpoint())
	}
	return a
}

// Leader returns the leader among the first member and others. It waits until there is one.
func (e *Etcd) Leader(ctx context.Context, others ...*Member) (leader *Member, err error) {
	err = e.Members(ctx, others, func(ctx context.Context, c *client.Client) error {
		return wait.Until(ctx, func() error {
			for _, leader = range append([]*Member{e.Member}, others...) {
				short, cancel := context.WithTimeout(ctx, 2*time.Second)
				s, err := c.Status(short, leader.Endpoint())
				cancel()
				if err == nil && s.Leader == s.Header.MemberId {
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
