// Package lab builds hosts on one machine: network namespaces on one fabric, a real etcd, real
// flanneld processes, containers behind each host's docker0 bridge, and traffic between all of
// them. The demo, the cluster tests and the benchmarks use it.
//
// All hosts of a Lab have the same shape. The hosts of a Site are configured by commands and can
// have any shape.
//
// It does not simulate flanneld: it runs a given binary and observes it only from outside (exit
// code, log, sd_notify, kernel objects, etcd keys, packets). It needs root and a Linux kernel and
// no other program.
//
// Invariant: the machine's own network namespace is never changed, and Close leaves nothing behind:
// no namespace, no process, no file. What a killed lab has left is removed by the next New.
//
// A program that uses the package must run its main function through Main, because etcd runs as a
// second process of the same binary:
//
//	func TestMain(m *testing.M) { os.Exit(lab.Main(m.Run)) }
package lab
