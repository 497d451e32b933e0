// Package lab builds a small data centre on one machine: hosts as network namespaces on one fabric, a real etcd, real
// flanneld processes, containers behind each host's docker0 bridge, and traffic between all of them. The demo, the
// cluster tests and the benchmarks run on it.
//
// The hosts of a lab are alike. A Site has hosts that are made by commands, of any shape.
//
// It is not a simulation of flanneld: it runs a given binary and looks at it only from outside (exit code, log,
// sd_notify, kernel objects, etcd keys, packets). It needs root and a Linux kernel and no other program.
//
// Invariant: the machine's own network namespace is never changed, and Close leaves nothing behind: no namespace, no
// process, no file. What a killed lab left is removed by the next New.
//
// A program that uses the package passes its main function through Main, because etcd runs as a second process of the
// same binary:
//
//	func TestMain(m *testing.M) { os.Exit(lab.Main(m.Run)) }
package lab
