package lab

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"

	"flanneld/pkg/lab/etcdserver"
)

// etcdVariable makes a process a lab's etcd; its value is an etcdConfig.
const etcdVariable = "FLANNEL_LAB_ETCD"

type etcdConfig struct {
	Dir           string
	Endpoint      string
	TLS           *TLS
	SlowElections bool // elections take longer, as there are several members

	// Fields of a member that joins others; see Member.
	Name, Peer string
	Members    string
}

// Main runs the program's main function and returns its exit code. In a process that a lab has
// started as its etcd, it runs etcd until SIGTERM instead. Under the name etcdctl, it runs that;
// see Etcdctl.
func Main(run func() int) int {
	if isEtcdctl() {
		if err := runEtcdctl(os.Getenv("ETCDCTL_API"), os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "etcdctl:", err)
			return 1
		}
		return 0
	}
	if text := os.Getenv(confineVariable); text != "" {
		fmt.Fprintln(os.Stderr, "unit:", confine(text))
		return 1
	}
	if !isEtcdProcess() {
		return run()
	}
	if err := serveEtcd(os.Getenv(etcdVariable)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func isEtcdProcess() bool { return os.Getenv(etcdVariable) != "" }

func etcdEnv(c etcdConfig) (string, error) {
	text, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("encode etcd config: %w", err)
	}
	return etcdVariable + "=" + string(text), nil
}

func serveEtcd(text string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var c etcdConfig
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return fmt.Errorf("decode etcd config: %w", err)
	}
	cfg, err := c.embed()
	if err != nil {
		return err
	}
	server, err := etcdserver.Start(ctx, cfg)
	if ctx.Err() != nil {
		return nil // SIGTERM before it was ready
	}
	if err != nil {
		return err
	}
	defer server.Close()
	if err := notify(os.Getenv("NOTIFY_SOCKET"), "READY=1"); err != nil {
		return err
	}
	select {
	case err := <-server.Err():
		return fmt.Errorf("serve etcd: %w", err)
	case <-ctx.Done():
		return nil
	}
}

// The first or only member. The namespace is etcd's own, so fixed loopback ports are free.
const (
	firstName = "lab"
	firstPeer = "127.0.0.1:2380"
)

func (c etcdConfig) embed() (*embed.Config, error) {
	cfg, err := etcdserver.Config(c.Dir, c.Endpoint, "http://"+cmp.Or(c.Peer, firstPeer))
	if err != nil {
		return nil, err
	}
	cfg.Name = cmp.Or(c.Name, firstName)
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	if c.Members != "" {
		cfg.InitialCluster, cfg.ClusterState = c.Members, embed.ClusterStateFlagExisting
	}
	if c.SlowElections {
		cfg.TickMs, cfg.ElectionMs = 100, 1000
		cfg.StrictReconfigCheck = false // which delays each change of members by 5 s
	}
	if c.TLS != nil {
		cfg.ClientTLSInfo = transport.TLSInfo{
			CertFile: c.TLS.ServerCert, KeyFile: c.TLS.ServerKey, TrustedCAFile: c.TLS.CA, ClientCertAuth: true,
		}
	}
	return cfg, nil
}
