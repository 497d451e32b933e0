package etcdkeys

import (
	"context"
	"errors"
	"strings"

	v2 "go.etcd.io/etcd/client/v2"
	v3 "go.etcd.io/etcd/client/v3"
)

// RequireUser is Store's.
func (v V3) RequireUser(ctx context.Context, password string, others ...string) error {
	return v.within(ctx, func(ctx context.Context, c *v3.Client) error {
		var errs []error
		do := func(_ any, err error) { errs = append(errs, err) }
		do(c.RoleAdd(ctx, "root"))
		for _, user := range append([]string{"root"}, others...) {
			do(c.UserAdd(ctx, user, password))
			do(c.UserGrantRole(ctx, user, "root"))
		}
		do(c.AuthEnable(ctx))
		return errors.Join(errs...)
	})
}

// RequireUser is Store's.
func (v *V2) RequireUser(ctx context.Context, password string, others ...string) error {
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
		_, err := users.GrantUser(ctx, user, []string{"root"})
		errs = append(errs, err)
	}
	// Without a user, a client has the role guest, which may do everything.
	return errors.Join(append(errs, v2.NewAuthAPI(c).Enable(ctx), v2.NewAuthRoleAPI(root).RemoveRole(ctx, "guest"))...)
}

const readersRole = "readers"

// PermitReading makes etcd require a user in this API, as RequireUser does. The user may read keys
// below a prefix and write nothing. With again, it revokes what was granted since the first call.
func (v V3) PermitReading(ctx context.Context, again bool, name, password, prefix string) error {
	prefix += "/"
	if again {
		v.Access = v.as("root", password)
	}
	return v.within(ctx, func(ctx context.Context, c *v3.Client) error {
		var errs []error
		do := func(_ any, err error) { errs = append(errs, err) }
		read := func() {
			do(c.RoleGrantPermission(ctx, readersRole, prefix, v3.GetPrefixRangeEnd(prefix), v3.PermissionType(v3.PermRead)))
		}
		if again {
			read()
			return errors.Join(errs...)
		}
		do(c.RoleAdd(ctx, "root"))
		do(c.RoleAdd(ctx, readersRole))
		read()
		for user, role := range map[string]string{"root": "root", name: readersRole} {
			do(c.UserAdd(ctx, user, password))
			do(c.UserGrantRole(ctx, user, role))
		}
		do(c.AuthEnable(ctx))
		return errors.Join(errs...)
	})
}

// PermitReading is V3.PermitReading for this API.
func (v *V2) PermitReading(ctx context.Context, again bool, name, password, prefix string) error {
	c, err := v.Client()
	if err != nil {
		return err
	}
	root, err := v.client(v.access.as("root", password))
	if err != nil {
		return err
	}
	if again {
		// flanneld suggests to grant this role.
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
	_, err = roles.GrantRoleKV(ctx, readersRole, []string{prefix + "/*"}, v2.ReadPermission)
	errs = append(errs, err)
	_, err = users.GrantUser(ctx, name, []string{readersRole})
	errs = append(errs, err, v2.NewAuthAPI(c).Enable(ctx), v2.NewAuthRoleAPI(root).RemoveRole(ctx, "guest"))
	return errors.Join(errs...)
}
