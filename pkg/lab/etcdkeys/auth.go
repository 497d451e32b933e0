package etcdkeys

import (
	"context"
	"errors"
	"strings"

	v2 "go.etcd.io/etcd/client/v2"
	v3 "go.etcd.io/etcd/client/v3"
)

const (
	rootRole    = "root" // may do everything
	readersRole = "readers"
)

func (v V3) RequireUser(ctx context.Context, password string, others ...string) error {
	return v.require(ctx, password, rootRole, others...)
}

// require makes etcd require root or one of the others, who have a role.
func (v V3) require(ctx context.Context, password, role string, others ...string) error {
	return v.within(ctx, func(ctx context.Context, c *v3.Client) error {
		var errs []error
		do := func(_ any, err error) { errs = append(errs, err) }
		do(c.RoleAdd(ctx, rootRole))
		do(c.UserAdd(ctx, "root", password))
		do(c.UserGrantRole(ctx, "root", rootRole))
		for _, user := range others {
			do(c.UserAdd(ctx, user, password))
			do(c.UserGrantRole(ctx, user, role))
		}
		do(c.AuthEnable(ctx))
		return errors.Join(errs...)
	})
}

func (v V3) PermitReading(ctx context.Context, again bool, name, password, prefix string) error {
	prefix += "/"
	if again {
		v.Access = v.as("root", password)
	}
	err := v.within(ctx, func(ctx context.Context, c *v3.Client) (err error) {
		if !again {
			_, err = c.RoleAdd(ctx, readersRole)
		}
		_, granted := c.RoleGrantPermission(ctx, readersRole, prefix, v3.GetPrefixRangeEnd(prefix), v3.PermissionType(v3.PermRead))
		return errors.Join(err, granted)
	})
	if err != nil || again {
		return err
	}
	return v.require(ctx, password, readersRole, name)
}

func (v *V2) RequireUser(ctx context.Context, password string, others ...string) error {
	return v.require(ctx, password, rootRole, others...)
}

func (v *V2) require(ctx context.Context, password, role string, others ...string) error {
	c, err := v.Client()
	if err != nil {
		return err
	}
	root, err := v.client(v.access.as("root", password))
	if err != nil {
		return err
	}
	users := v2.NewAuthUserAPI(c)
	errs := []error{users.AddUser(ctx, "root", password)}
	for _, user := range others {
		errs = append(errs, users.AddUser(ctx, user, password))
		_, err := users.GrantUser(ctx, user, []string{role})
		errs = append(errs, err)
	}
	// Without a user, a client has the role guest, which may do everything.
	return errors.Join(append(errs, v2.NewAuthAPI(c).Enable(ctx), v2.NewAuthRoleAPI(root).RemoveRole(ctx, "guest"))...)
}

func (v *V2) PermitReading(ctx context.Context, again bool, name, password, prefix string) error {
	if again {
		root, err := v.client(v.access.as("root", password))
		if err != nil {
			return err
		}
		// flanneld suggests to grant this role.
		_, err = v2.NewAuthUserAPI(root).RevokeUser(ctx, name, []string{"flannel"})
		if err != nil && strings.Contains(err.Error(), "ungranted") {
			return nil
		}
		return err
	}
	c, err := v.Client()
	if err != nil {
		return err
	}
	roles := v2.NewAuthRoleAPI(c)
	err = roles.AddRole(ctx, readersRole)
	if _, granted := roles.GrantRoleKV(ctx, readersRole, []string{prefix + "/*"}, v2.ReadPermission); err != nil || granted != nil {
		return errors.Join(err, granted)
	}
	return v.require(ctx, password, readersRole, name)
}
