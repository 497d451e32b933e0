package main

// registryFaults are the faults of the daemon, etcd and the leases.
func registryFaults() []fault {
	return []fault{
		{
			name: "daemon is down", id: "FL-DAEMON-DOWN", said: []string{"systemctl start flanneld"},
			make: func(c *faultCluster) { c.must(c.h.Flanneld().Kill(c.ctx)) },
			cure: func(c *faultCluster) { c.start(c.h) },
		},
		{
			name: "etcd is down", id: "FL-ETCD-DOWN", said: []string{"connection refused"},
			make: func(c *faultCluster) { c.must(c.Etcd.Stop(c.ctx)) },
			cure: func(c *faultCluster) { c.must(c.Etcd.Start(c.ctx)) },
		},
	}
}
