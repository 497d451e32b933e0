// Package firewalld configures a running firewalld, over D-Bus, to accept packets of an overlay
// network. Since version 2.1 firewalld owns its table in nftables, so that no other program can add
// rules there.
//
// It changes only the runtime configuration, by one source of one zone. Invariant: the permanent
// configuration, and the zone that another program has assigned to the network, belong to the
// operator and are not changed.
package firewalld

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
)

// Table is firewalld's table in nftables.
const Table = "inet firewalld"

// zone is a predefined zone that accepts all packets.
const zone = "trusted"

// Names on the bus (firewalld.dbus(5)).
const (
	service         = "org.fedoraproject.FirewallD1"
	object          = "/org/fedoraproject/FirewallD1"
	zoneInterface   = service + ".zone"
	configPath      = object + "/config"
	configInterface = service + ".config"
	reloaded        = "Reloaded"

	busInterface = "org.freedesktop.DBus"
	ownerChanged = "NameOwnerChanged"
)

var (
	// ErrNoBus reports that there is no D-Bus.
	ErrNoBus = errors.New("no D-Bus")
	// ErrOtherZone reports that the network has been assigned to another zone.
	ErrOtherZone = errors.New("the network is in another zone of firewalld")
)

// Client is a connection to the system bus.
type Client struct {
	conn    *dbus.Conn
	changed chan struct{}
}

// dialTimeout limits the wait for a bus that accepts connections but does not answer.
const dialTimeout = 5 * time.Second

// Dial connects to the system bus until ctx ends. firewalld need not be running.
func Dial(ctx context.Context) (*Client, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	limit := time.AfterFunc(dialTimeout, func() { cancel(errNoReply) })
	c, err := dial(ctx)
	if !limit.Stop() && err == nil {
		err = errNoReply
	}
	if err != nil {
		cancel(nil)
		if errors.Is(context.Cause(ctx), errNoReply) {
			err = errNoReply
		}
		return nil, fmt.Errorf("%w: %w", ErrNoBus, err)
	}
	context.AfterFunc(c.conn.Context(), func() { cancel(nil) })
	return c, nil
}

var errNoReply = errors.New("the system bus does not answer")

// dial connects, and subscribes to signals about a new runtime configuration of firewalld.
func dial(ctx context.Context) (*Client, error) {
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	c := &Client{conn: conn, changed: make(chan struct{}, 1)}
	signals := make(chan *dbus.Signal, 16)
	conn.Signal(signals)
	err = conn.AddMatchSignal(dbus.WithMatchSender(service), dbus.WithMatchInterface(service), dbus.WithMatchMember(reloaded))
	if err == nil {
		err = conn.AddMatchSignal(dbus.WithMatchInterface(busInterface), dbus.WithMatchMember(ownerChanged), dbus.WithMatchArg(0, service))
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	go func() { // ends with the connection, which closes signals
		defer close(c.changed)
		for s := range signals {
			if s.Name != service+"."+reloaded && s.Name != busInterface+"."+ownerChanged {
				continue
			}
			select {
			case c.changed <- struct{}{}:
			default: // a signal is pending
			}
		}
	}()
	return c, nil
}

// Changed signals that firewalld was reloaded, started or stopped. The channel is closed with the
// connection.
func (c *Client) Changed() <-chan struct{} { return c.changed }

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Trust adds a network to the zone trusted, unless it is there already. The error is ErrOtherZone
// if it is in another one.
func (c *Client) Trust(ctx context.Context, network netip.Prefix) (added bool, err error) {
	now, err := c.zoneOf(ctx, network)
	if err != nil || now == zone {
		return false, err
	}
	if now != "" {
		return false, fmt.Errorf("%w: %s", ErrOtherZone, now)
	}
	err = c.call(ctx, object, zoneInterface, "addSource", zone, network.String()).Err
	if err != nil && !isAlreadyAdded(err) {
		return false, fmt.Errorf("add source %s to zone %s of firewalld: %w", network, zone, err)
	}
	return err == nil, nil
}

// Trusted reports whether the network is in the zone trusted in the runtime configuration but not
// in the permanent one, as after Trust.
func (c *Client) Trusted(ctx context.Context, network netip.Prefix) (bool, error) {
	now, err := c.zoneOf(ctx, network)
	if err != nil || now != zone {
		return false, err
	}
	var path dbus.ObjectPath
	if err := c.call(ctx, configPath, configInterface, "getZoneByName", zone).Store(&path); err != nil {
		return false, fmt.Errorf("look up zone %s of firewalld: %w", zone, err)
	}
	var permanent bool
	if err := c.call(ctx, path, configInterface+".zone", "querySource", network.String()).Store(&permanent); err != nil {
		return false, fmt.Errorf("look up the sources of zone %s of firewalld: %w", zone, err)
	}
	return !permanent, nil
}

// Untrust removes a network that is Trusted from the zone.
func (c *Client) Untrust(ctx context.Context, network netip.Prefix) error {
	if err := c.call(ctx, object, zoneInterface, "removeSource", zone, network.String()).Err; err != nil {
		return fmt.Errorf("remove source %s from zone %s of firewalld: %w", network, zone, err)
	}
	return nil
}

// TrustCommand returns the command that does the same as Trust.
func TrustCommand(network netip.Prefix) string { return command("add", network) }

// MoveCommand returns the command for a network that is in another zone.
func MoveCommand(network netip.Prefix) string { return command("change", network) }

// UntrustCommand returns the command that does the same as Untrust.
func UntrustCommand(network netip.Prefix) string { return command("remove", network) }

func command(verb string, network netip.Prefix) string {
	return fmt.Sprintf("firewall-cmd --zone=%s --%s-source=%s", zone, verb, network)
}

// zoneOf returns the zone of a source, or "".
func (c *Client) zoneOf(ctx context.Context, network netip.Prefix) (now string, err error) {
	if err := c.call(ctx, object, zoneInterface, "getZoneOfSource", network.String()).Store(&now); err != nil {
		return "", fmt.Errorf("ask firewalld for the zone of %s: %w", network, err)
	}
	return now, nil
}

// call calls a method. It does not start firewalld if it does not run.
func (c *Client) call(ctx context.Context, path dbus.ObjectPath, face, method string, args ...any) *dbus.Call {
	return c.conn.Object(service, path).CallWithContext(ctx, face+"."+method, dbus.FlagNoAutoStart, args...)
}

// isAlreadyAdded reports whether an error means that the source was added already.
func isAlreadyAdded(err error) bool {
	return strings.Contains(err.Error(), "ZONE_ALREADY_SET") || strings.Contains(err.Error(), "ALREADY_ENABLED")
}

// NotRunning reports whether an error means that firewalld does not run.
func NotRunning(err error) bool {
	var e dbus.Error
	return errors.As(err, &e) && (e.Name == "org.freedesktop.DBus.Error.ServiceUnknown" || e.Name == "org.freedesktop.DBus.Error.NameHasNoOwner")
}
