package lab

import (
	"context"
	"errors"
	"fmt"

	v2 "go.etcd.io/etcd/client/v2"
	v3 "go.etcd.io/etcd/client/v3"
)

// RequireUser has etcd ask for a user and a password in both of its APIs, from now on also when the lab itself reads
// or writes a key. The user may do everything.
func (e *Etcd) RequireUser(ctx context.Context, name, password string) error {
	err := errors.Join(
		e.V3().within(ctx, func(ctx context.Context, c *v3.Client) error { return requireUser3(ctx, c, name, password) }),
		e.requireUser2(ctx, name, password),
	)
	if err != nil {
		return fmt.Errorf("have etcd require a user: %w", err)
	}
	return nil
}

func requireUser3(ctx context.Context, c *v3.Client, name, password string) error {
	if _, err := c.RoleAdd(ctx, "root"); err != nil {
		return err
	}
	for _, user := range []string{"root", name} {
		if _, err := c.UserAdd(ctx, user, password); err != nil {
			return err
		}
		if _, err := c.UserGrantRole(ctx, user, "root"); err != nil {
			return err
		}
	}
	_, err := c.AuthEnable(ctx)
	return err
}

func (e *Etcd) requireUser2(ctx context.Context, name, password string) error {
	c, err := v2.New(v2.Config{Endpoints: []string{e.Endpoint()}, Transport: e.transport})
	if err != nil {
		return err
	}
	root, err := v2.New(v2.Config{Endpoints: []string{e.Endpoint()}, Transport: e.transport, Username: "root", Password: password})
	if err != nil {
		return err
	}
	for _, user := range []string{"root", name} {
		if err := v2.NewAuthUserAPI(c).AddUser(ctx, user, password); err != nil {
			return err
		}
	}
	if _, err := v2.NewAuthUserAPI(c).GrantUser(ctx, name, []string{"root"}); err != nil {
		return err
	}
	if err := v2.NewAuthAPI(c).Enable(ctx); err != nil {
		return err
	}
	// Everybody may do everything as a guest.
	return v2.NewAuthRoleAPI(root).RemoveRole(ctx, "guest")
}
