//go:build system

package dist_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"flanneld/pkg/doctor"
	"flanneld/pkg/lab/wait"
)

// named waits until the doctor names a cause first, and nothing else fails but what may follow from
// it. It returns the doctor's findings.
func (h *host) named(id string, also ...string) []doctor.Finding {
	h.system.Helper()
	return h.diagnosed("finds "+id, func(r doctor.Report) error {
		for i, f := range r.Findings {
			if (i == 0) != (f.ID == id) || f.Status == doctor.Fail && i > 0 && !slices.Contains(also, f.ID) {
				return fmt.Errorf("place %d: %s: %s", i+1, f.ID, f.Summary)
			}
		}
		if r.Findings[0].Status != doctor.Fail {
			return errors.New("nothing fails")
		}
		return nil
	}).Findings
}

// healthy waits until the doctor finds nothing wrong.
func (h *host) healthy() {
	h.system.Helper()
	h.diagnosed("finds nothing", func(r doctor.Report) error {
		if r.Failed() {
			return fmt.Errorf("%s fails: %s", r.Findings[0].ID, r.Findings[0].Summary)
		}
		return nil
	})
}

// diagnosed runs the doctor until its report is as it should be, within the time limit.
func (h *host) diagnosed(what string, check func(doctor.Report) error) (r doctor.Report) {
	h.system.Helper()
	ctx, cancel := context.WithTimeout(h.system.Context(), soon)
	defer cancel()
	err := wait.Until(ctx, func() error {
		out, err := h.Run(ctx, "flanneld doctor --json || [ $? = 1 ]")
		if r = (doctor.Report{}); err == nil {
			err = json.Unmarshal([]byte(out), &r)
		}
		if err == nil && len(r.Findings) == 0 {
			err = errors.New("the report is empty")
		}
		if err != nil {
			return err
		}
		return check(r)
	})
	if err != nil {
		h.system.Fatalf("doctor on %s %s: %v", h.Name, what, err)
	}
	return r
}

// networkd has systemd-networkd configure the overlay's device. What the doctor says mends that.
func (s *system) networkd() string {
	s.Helper()
	h := s.hosts[0]
	h.healthy()
	h.must(`printf '[Match]\nName=flannel*\n' >/etc/systemd/network/50-all.network; networkctl reload`)
	found := h.named("FL-DEVICE-MANAGED")[0]
	if !strings.Contains(found.Summary, "50-all.network") {
		s.Errorf("the file is missing in: %s", found.Summary)
	}
	h.must(found.Remedy)
	h.healthy()
	h.must("rm /etc/systemd/network/50-all.network /etc/systemd/network/01-flannel.network; networkctl reload")
	s.ping()
	return found.Summary
}

// networkManager has NetworkManager watch the overlay's device, and then configure it. What the
// doctor says mends that, also across a restart of NetworkManager, and keeps what the administrator
// has set.
func (s *system) networkManager() string {
	s.Helper()
	const device = "{ ip -d link show flannel.1; ip -4 addr show flannel.1; ip route show dev flannel.1; }"
	// Without reset-failed, systemd refuses so many starts in so short a time.
	const restart = "systemctl reset-failed NetworkManager; systemctl restart NetworkManager; nm-online -q -s"
	notes := make([]string, len(s.hosts))
	s.both(func(h *host) {
		h.write("/etc/NetworkManager/conf.d/eth0.conf", "[keyfile]\nunmanaged-devices=interface-name:eth0\n")
		h.must(device + " >/tmp/before; systemctl start NetworkManager")
		for range 2 {
			h.eventually("nmcli -g GENERAL.STATE device show flannel.1 | grep externally")
			h.healthy()
			h.must(restart)
		}
		h.eventually(device + " | diff /tmp/before -")
		// As an administrator does who takes the profile that NetworkManager shows for one to edit.
		h.must("nmcli connection modify flannel.1 connection.autoconnect yes; nmcli connection up flannel.1")
		found := h.named("FL-DEVICE-MANAGED", "FL-DRIFT")[0]
		h.must(restart)
		h.named("FL-DEVICE-MANAGED", "FL-DRIFT")
		h.must(found.Remedy)
		for range 2 {
			h.healthy()
			h.eventually(device + " | diff /tmp/before -")
			h.must("for i in flannel.1 eth0; do nmcli -g GENERAL.STATE device show $i | grep unmanaged; done")
			h.must(restart)
		}
		h.must("systemctl stop NetworkManager; rm -r /etc/NetworkManager/conf.d/* /etc/NetworkManager/system-connections/* /run/NetworkManager")
		h.healthy()
		notes[slices.Index(s.hosts, h)] = h.must("NetworkManager --version") + ": " + found.Summary
	})
	s.reachable()
	return strings.Join(notes, "; ")
}

// closedPort checks what the doctor says of a firewall that drops the tunnel's packets: its name, and
// the begin of the command that opens the port.
func (s *system) closedPort(tool, open string) {
	s.Helper()
	s.both(func(h *host) {
		found := h.named("FL-TUNNEL-INPUT", "FL-FIREWALL-TOOL", "FL-FORWARD-DROP", "FL-PEER-UNREACHABLE", "FL-PATH-MTU", "FL-HOST-UNREACHABLE")
		if !strings.HasPrefix(found[0].Remedy, open) {
			s.Errorf("%s: remedy %q", h.Name, found[0].Remedy)
		}
		names := func(f doctor.Finding) bool {
			return f.ID == "FL-FIREWALL-TOOL" && f.Status == doctor.Fail && strings.HasPrefix(f.Summary, tool+" drops packets")
		}
		if !slices.ContainsFunc(found, names) {
			s.Errorf("%s: %s is not named: %+v", h.Name, tool, found)
		}
	})
}
