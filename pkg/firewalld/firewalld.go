// Package firewalld asks a running firewalld, over D-Bus, to let an overlay network
// pass. Since 2.1 firewalld owns its table in nftables, so that no other program may
// write there.
//
// It changes the runtime configuration only, by one source of one zone. Invariant:
// what the permanent configuration holds, and a zone that somebody else has put
// the network into, are the operator's and stay.
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

// Table is firewalld's own in nftables.
const Table = "inet firewalld"

// zone is firewalld's own, which accepts everything.
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
	// ErrNoBus says that there is no D-Bus to ask over.
	ErrNoBus = errors.New("no D-Bus")
	// ErrOtherZone says that the network is in a zone that somebody has chosen.
	ErrOtherZone = errors.New("the network is in another zone of firewalld")
)

// Client is a connection to the system bus.
type Client struct {
	conn    *dbus.Conn
	changed chan struct{}
}

// dialTimeout bounds how long a bus that accepts connections is waited for until it answers.
const dialTimeout = 5 * time.Second

// Dial connects to the system bus until ctx ends, whether firewalld runs or not.
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

func dial(ctx context.Context) (*Client, error) {
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	c := &Client{conn: conn, changed: make(chan struct{}, 1)}
	if err := c.subscribe(); err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

// subscribe asks for the signals that firewalld's runtime configuration is a new one.
func (c *Client) subscribe() error {
	signals := make(chan *dbus.Signal, 16)
	c.conn.Signal(signals)
	err := c.conn.AddMatchSignal(dbus.WithMatchSender(service), dbus.WithMatchInterface(service), dbus.WithMatchMember(reloaded))
	if err == nil {
		err = c.conn.AddMatchSignal(dbus.WithMatchInterface(busInterface), dbus.WithMatchMember(ownerChanged), dbus.WithMatchArg(0, service))
	}
	if err != nil {
		return err
	}
	go func() { // ends with the connection, which closes signals
		defer close(c.changed)
		for s := range signals {
			if s.Name != service+"."+reloaded && s.Name != busInterface+"."+ownerChanged {
				continue
			}
			select {
			case c.changed <- struct{}{}:
			default: // one is there that was not read yet
			}
		}
	}()
	return nil
}

// Changed signals that firewalld was reloaded, started or stopped. The channel is
// closed with the connection.
func (c *Client) Changed() <-chan struct{} { return c.changed }

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Trust puts a network into the zone trusted, unless it is there. The error is
// ErrOtherZone where it is in another one.
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

// Trusted reports whether the runtime configuration, and not the permanent one, has
// the network in the zone trusted, as Trust leaves it.
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

// Untrust takes a network that is Trusted out of the zone.
func (c *Client) Untrust(ctx context.Context, network netip.Prefix) error {
	if err := c.call(ctx, object, zoneInterface, "removeSource", zone, network.String()).Err; err != nil {
		return fmt.Errorf("remove source %s from zone %s of firewalld: %w", network, zone, err)
	}
	return nil
}

// TrustCommand is Trust for a person to type.
func TrustCommand(network netip.Prefix) string {
	return fmt.Sprintf("firewall-cmd --zone=%s --add-source=%s", zone, network)
}

// MoveCommand is TrustCommand for a network that is in another zone.
func MoveCommand(network netip.Prefix) string {
	return fmt.Sprintf("firewall-cmd --zone=%s --change-source=%s", zone, network)
}

// UntrustCommand is Untrust for a person to type.
func UntrustCommand(network netip.Prefix) string {
	return fmt.Sprintf("firewall-cmd --zone=%s --remove-source=%s", zone, network)
}

// zoneOf returns the zone of a source, or nothing.
func (c *Client) zoneOf(ctx context.Context, network netip.Prefix) (now string, err error) {
	if err := c.call(ctx, object, zoneInterface, "getZoneOfSource", network.String()).Store(&now); err != nil {
		return "", fmt.Errorf("ask firewalld for the zone of %s: %w", network, err)
	}
	return now, nil
}

// call does not have the bus start a firewalld that does not run.
func (c *Client) call(ctx context.Context, path dbus.ObjectPath, face, method string, args ...any) *dbus.Call {
	return c.conn.Object(service, path).CallWithContext(ctx, face+"."+method, dbus.FlagNoAutoStart, args...)
}

// isAlreadyAdded tells an answer that what is to be added is there already.
func isAlreadyAdded(err error) bool {
	return strings.Contains(err.Error(), "ZONE_ALREADY_SET") || strings.Contains(err.Error(), "ALREADY_ENABLED")
}

// NotRunning reports whether an error is that nobody is there to answer.
func NotRunning(err error) bool {
	var e dbus.Error
	return errors.As(err, &e) && (e.Name == "org.freedesktop.DBus.Error.ServiceUnknown" || e.Name == "org.freedesktop.DBus.Error.NameHasNoOwner")
}
