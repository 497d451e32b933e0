// Package pkg is the map of the code. It contains no code.
//
// The registry (etcd) has the wanted state, the kernel has the actual state, and the daemon is a
// level-triggered function between them. There is one path from "something changed" to "the kernel
// is right". Start, join, leave, restart, repair and reconnect all take this path:
//
//	etcd v2|v3 -registry-> subnet (acquire, renew, follow) --lease.View-+
//	driver events -------> uplink --------------------------host.Facts--+
//	                                                                    v
//	             reconcile.Loop.SetView, SetFacts: the latest of each
//	                                                                    v
//	             backend.Plan.Update(facts, view)        pure: no clock, no I/O
//	                                                                    v
//	             want dataplane.State
//	driver.Snapshot(scope) --> have dataplane.State
//	                                                                    v
//	             dataplane.Diff(want, have, scope, prune) -> Delta   pure, ordered
//	                                                                    v
//	     driver.Mux.Apply(ops) -> kernel | tunnel -> results -> back-off -> next pass
//
// Data flows down: each source pushes its values to those that need them. These hold the latest
// value. No getter has a side effect. The comment of daemon.serve lists what flows where.
//
// Packet filter rules take the same path on a smaller scale: firewall.Rules computes the wanted
// rules, filter decides when to check them and which keeper has them, iptables and nftables compare
// and write them.
//
// The packages, called rooms below, are listed in order: each imports only rooms above it. First
// the rooms that compute values from values:
//
//	shell       words of a command, quoted for a shell
//	lease       a lease, its key and value, a host's claim on it, the View, the choice of a subnet
//	netconf     network config: parse, defaults, validate
//	host        facts about this host; the choice of the uplink
//	dataplane   kernel objects as values, their difference, their text
//	firewall    packet filter rules as values
//	backend     one file for each backend: what to publish, what the kernel should have
//	configdiff  what a change of the network config means for the hosts
//	status      the document of /status: its types, its verdict, its text
//	trace       the way of a packet between two containers: from facts to steps and a verdict
//	plan        the document of /plan: operations as commands
//
// Rooms for one thing each outside of the process:
//
//	condition   what is wrong now: logged when it begins and when it ends
//	pace        back-off, shares of time, fights: how often something is done that others cause
//	logsink     writes log lines to standard error, bounded, without blocking anyone
//	systemd     READY, the watchdog, and descriptors that outlive the process
//	presence    other daemons on this host, and what they have
//	subnetenv   reads, atomically writes and keeps subnet.env, and the claim beside it
//	page        the page at /: what a browser loads, and the events that keep it up to date
//	api         answers questions over HTTP: the status, readiness, health checks; and the client of
//	            the commands that ask them
//	registry    the interface of a store of leases; implemented by etcdv2, etcdv3 and memory; store
//	            finds out which of them holds the network, and reports what keeps this host from it
//	netlink     exchanges messages with the kernel: sockets, batches, lists, notifications
//	driver      the interface of a driver of kernel objects; one driver made of several
//	kernel      rtnetlink: inventory, snapshot, apply, watch
//	tunnel      the udp backend's packet engine: TUN and UDP socket, batched; its driver
//	iptables    keeps packet filter rules with the iptables commands
//	nftables    keeps packet filter rules with nfnetlink
//	firewalld   asks firewalld, over D-Bus, for rules in tables that only it can write
//	probe       finds out by ARP and ICMP whether another host has an address
//
// Rooms with loops that run as long as the daemon:
//
//	subnet      acquires, renews and follows leases: registry in, View out; it never blocks on
//	            anything but its next input
//	needs       addresses that this host must reach outside the overlay; removes routes over them
//	uplink      watches the interface that carries the overlay, and pushes the facts about this host
//	terms       what this host's lease should contain, from facts, config and rivals
//	reconcile   the loop: when to check, how often to retry, what to report
//	filter      when packet filter rules are checked, who keeps them, who stands in; the
//	            underlay's lock
//	prober      pings the peers through the overlay: loss, round-trip time, MTU
//	checks      finds settings of this host that keep the overlay from working
//
// And rooms that use the others:
//
//	metrics     exports totals and state of the rooms above to Prometheus
//	cleanup     removes what a daemon has made for a network
//	operator    what an operator does in etcd: the network config, reservations, releases
//	doctor      finds out why hosts do not reach each other: a table of checks, and their report
//	daemon      wiring, order of start and stop
//	lab         many hosts on one machine, for tests, demo and benchmarks; the other test beds are
//	            beside it (etcdtest: an etcd for one test; machine: hosts with systemd; vm: a
//	            virtual machine with another kernel), and what they and all tests share (wait,
//	            logs, golden, netns, etcdkeys, etcdserver, relay, cache)
//
// To follow one change: begin in subnet.Follow, which emits a View; continue with
// reconcile.Loop.SetView and Loop.Pass, then backend.Plan.Update and dataplane.Diff, and end with
// driver.Mux.Apply and kernel.Apply.
//
// The tests beside this file check the rules between the rooms (arch_test.go), the language of
// comments and logs (language_test.go), and that the README agrees with the code (readme_test.go).
//
// Three extensions are planned for. Each touches few places:
//
//   - A kind of object: its types, its map in State and its Descriptor (dataplane/kinds.go);
//     reading, writing and events in its driver (in kernel a file, which registers a handler); a
//     test. Comparing, ordering, ownership, reports, back-off and pruning follow from the
//     descriptor.
//   - A backend: its file, which registers itself; its golden file; its row in the README.
//   - A driver: a room with the three methods of driver.Driver, and a driver.Part in daemon that
//     lists its kinds.
//
// The overlay carries IPv4. What names addresses has room for IPv6 as well: lease.Subnets, which
// identify a lease and are its key, lease.Attrs, lease.Pool, netconf.Config, host.Facts and
// dataplane.Scope. A route, a neighbour or a tunnel entry is of one prefix or address, of
// either family.
package pkg
