// Package pkg is the map of the code; it holds none.
//
// The registry (etcd) holds the wanted world, the kernel the actual one, and
// the daemon is a level-triggered function between them. There is one path from
// "something changed" to "the kernel is right", and start, join, leave, restart,
// repair and reconnect are all that same path:
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
// Data flows down: each source pushes its values to those that need them, which hold
// the latest one, and no getter does anything. The comment of daemon.serve says what
// flows where.
//
// What is counted on the way is a copy that any goroutine may have: subnet.Stats, which Follow
// reports, and the Stats of store.Registry, reconcile.Loop, tunnel.Driver, filter.Filter and
// filter.Lock.
//
// Packet filter rules go the same way in small, beside it: firewall.Rules says what
// is wanted, filter when to look and which keeper has it, iptables and nftables compare
// and write.
//
// The rooms. Each imports only what is above it. First values that are made of values:
//
//	netconf     network config: parse, defaults, validate
//	lease       a lease, its key and value, a host's claim on it, the View, the choice of a subnet
//	host        facts about this host; choosing the uplink
//	dataplane   kernel objects as values, their difference, their text
//	firewall    packet filter rules as values
//	backend     one file a backend: what to publish, what the kernel should hold
//
// What has to do with one thing outside, each:
//
//	condition   what is wrong now: logged when it begins and when it ends
//	pace        back-off, shares of time, fights: how often what others cause is done
//	logsink     takes log lines to standard error, bounded, and in nobody's way
//	health      answers health checks: the process lives, the host has its subnet or what is missing
//	systemd     READY, the watchdog, and descriptors that outlive the process
//	presence    which other daemons there are on this host, and what they hold
//	subnetenv   reads, atomically writes and keeps subnet.env, and the claim beside it
//	registry    what a store of leases can do; etcdv2, etcdv3 and memory do it; store finds out
//	            which of them the network is in, and says what keeps this host from it
//	netlink     exchanges messages with the kernel: sockets, batches, lists, notifications
//	driver      what a driver of kernel objects can do; one made of several
//	kernel      speaks rtnetlink: inventory, snapshot, apply, watch
//	tunnel      the udp backend's packet engine: TUN and UDP socket, batched; its driver
//	iptables    keeps the packet filter rules, by the iptables commands
//	nftables    keeps them by nfnetlink
//	firewalld   asks firewalld, over D-Bus, for what it lets nobody else write
//	probe       finds out whether somebody has an address, by ARP and ICMP
//
// What goes on all the time:
//
//	subnet      acquires, renews and follows leases: registry in, View out; waits for nothing
//	            but its next input
//	needs       which addresses this host must reach without the overlay; clears the way to them
//	uplink      watches the interface that carries the overlay, and pushes the facts about this host
//	terms       what this host's lease is to say, out of facts, config and rivals
//	reconcile   the loop: when to look, how often to try, what to say
//	filter      when packet filter rules are looked at, who keeps them, who stands in; the
//	            underlay's lock
//	checks      looks for what of this host keeps the overlay from working
//
// And what sees the others:
//
//	cleanup     removes what a daemon has left of a network
//	daemon      wiring, order of start and stop
//	lab         many hosts on one machine, for tests, demo and benchmarks; beside it are the
//	            other test beds (etcdtest: an etcd for one test; machine: hosts with systemd;
//	            vm: a guest with another kernel) and what they and all tests share (wait, logs,
//	            golden, netns, etcdkeys, etcdserver, relay, cache)
//
// To follow one change, begin in subnet.Follow, where a View is emitted, go on by
// reconcile.Loop.SetView to Loop.Pass, from there to backend.Plan.Update and dataplane.Diff,
// and by driver.Mux.Apply end in kernel.Apply. The rules between the rooms are kept by the
// test beside this file.
//
// Three things are meant to be added, each in few places:
//
//   - a kind of object: its types, its map in State and its Descriptor (dataplane/kinds.go);
//     how it is read, written and heard of, in its driver (in kernel a file, which registers
//     a handler); a test. Comparing, ordering, ownership, reports, back-off and pruning follow
//     from the descriptor.
//   - a backend: its file, which registers itself; its golden file; its row in the README.
//   - a driver: a room with the three methods of driver.Driver, and a driver.Part in daemon
//     that says which kinds are its own.
package pkg
