package main

import "golang.org/x/sys/unix"

// mayChangeNetwork reports whether this thread has CAP_NET_ADMIN; true if it is unknown.
func mayChangeNetwork() bool {
	var sets [2]unix.CapUserData
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	return unix.Capget(&header, &sets[0]) != nil || sets[0].Effective&(1<<unix.CAP_NET_ADMIN) != 0
}
