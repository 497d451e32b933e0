package lab

import (
	"context"
	"errors"
	"fmt"
	"strings"

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

// PermitReading has etcd ask for a user in both of its APIs, as RequireUser does, of one who may read what is below a
// prefix and write nothing. Root has the same password. Called again, it takes back what was permitted since.
func (e *Etcd) PermitReading(ctx context.Context, name, password, prefix string) error {
	again := e.readers
	e.readers = true
	err := errors.Join(
		e.V3().as(ctx, again, password, func(ctx context.Context, c *v3.Client) error {
			return permitReading3(ctx, c, again, name, password, prefix+"/")
		}),
		e.permitReading2(ctx, again, name, password, prefix+"/*"),
	)
	if err != nil {
		return fmt.Errorf("have etcd permit reading only: %w", err)
	}
	return nil
}

const readersRole = "readers"

func permitReading3(ctx context.Context, c *v3.Client, again bool, name, password, prefix string) error {
	read := func() error {
		_, err := c.RoleGrantPermission(ctx, readersRole, prefix, v3.GetPrefixRangeEnd(prefix), v3.PermissionType(v3.PermRead))
		return err
	}
	if again {
		return read()
	}
	var errs []error
	do := func(_ any, err error) { errs = append(errs, err) }
	do(c.RoleAdd(ctx, "root"))
	do(c.RoleAdd(ctx, readersRole))
	do(nil, read())
	for user, role := range map[string]string{"root": "root", name: readersRole} {
		do(c.UserAdd(ctx, user, password))
		do(c.UserGrantRole(ctx, user, role))
	}
	do(c.AuthEnable(ctx))
	return errors.Join(errs...)
}

func (e *Etcd) permitReading2(ctx context.Context, again bool, name, password, path string) error {
	config := v2.Config{Endpoints: []string{e.Endpoint()}, Transport: e.transport}
	c, err := v2.New(config)
	if err != nil {
		return err
	}
	config.Username, config.Password = "root", password
	root, err := v2.New(config)
	if err != nil {
		return err
	}
	if again {
		// By the role that flanneld suggests, if that was granted.
		_, err := v2.NewAuthUserAPI(root).RevokeUser(ctx, name, []string{"flannel"})
		if err != nil && strings.Contains(err.Error(), "ungranted") {
			return nil
		}
		return err
	}
	roles, users := v2.NewAuthRoleAPI(c), v2.NewAuthUserAPI(c)
	errs := []error{
		roles.AddRole(ctx, readersRole),
		users.AddUser(ctx, "root", password),
		users.AddUser(ctx, name, password),
	}
	_, err = roles.GrantRoleKV(ctx, readersRole, []string{path}, v2.ReadPermission)
	errs = append(errs, err)
	_, err = users.GrantUser(ctx, name, []string{readersRole})
	errs = append(errs, err, v2.NewAuthAPI(c).Enable(ctx), v2.NewAuthRoleAPI(root).RemoveRole(ctx, "guest"))
	return errors.Join(errs...)
}
