package lab

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	v2 "go.etcd.io/etcd/client/v2"
	v3 "go.etcd.io/etcd/client/v3"

	"flanneld/pkg/lab/etcdkeys"
)

// Etcdctl creates a program named etcdctl in dir, so that commands can be run as flanneld prints
// them. dir must be in the PATH of the shell. The program is the calling one, which must run
// through Main. It supports the commands of etcdctl 3.5 that flanneld suggests and a few that tests
// need. The password is in ETCDCTL_PASSWORD.
func Etcdctl(dir string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the binary to run etcdctl with: %w", err)
	}
	return os.Symlink(self, filepath.Join(dir, "etcdctl"))
}

func isEtcdctl() bool { return filepath.Base(os.Args[0]) == "etcdctl" }

// runEtcdctl runs an etcdctl command line.
func runEtcdctl(version string, args []string) error {
	f := flag.NewFlagSet("etcdctl", flag.ContinueOnError)
	names := map[string][]string{"2": {"ca-file", "cert-file", "key-file", "username"}, "3": {"cacert", "cert", "key", "user"}}[version]
	if names == nil {
		return fmt.Errorf("ETCDCTL_API=%s", version)
	}
	endpoints := f.String("endpoints", "", "")
	var ca, cert, key, user string
	for i, v := range []*string{&ca, &cert, &key, &user} {
		f.StringVar(v, names[i], "", "")
	}
	if err := f.Parse(args); err != nil {
		return err
	}
	access := etcdkeys.Access{Endpoints: strings.Split(*endpoints, ",")}
	if user != "" {
		access.Username, access.Password = user, os.Getenv("ETCDCTL_PASSWORD")
	}
	var err error
	if access.TLS, err = etcdkeys.ClientTLS(ca, cert, key); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if version == "2" {
		keys, err := etcdkeys.OpenV2(access)
		if err != nil {
			return err
		}
		client, err := keys.Client()
		if err != nil {
			return err
		}
		return etcdctl2(ctx, client, f.Args())
	}
	client, err := etcdkeys.V3{Access: access}.Client(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	return etcdctl3(ctx, client, f.Args())
}

func etcdctl2(ctx context.Context, c v2.Client, args []string) (err error) {
	words := strings.Join(args, " ")
	switch {
	case len(args) == 3 && args[0] == "set":
		_, err = v2.NewKeysAPI(c).Set(ctx, args[1], args[2], nil)
	case len(args) == 5 && args[0] == "set" && args[1] == "--ttl":
		var seconds int
		if seconds, err = strconv.Atoi(args[2]); err == nil {
			_, err = v2.NewKeysAPI(c).Set(ctx, args[3], args[4], &v2.SetOptions{TTL: time.Duration(seconds) * time.Second})
		}
	case len(args) == 2 && args[0] == "rm":
		_, err = v2.NewKeysAPI(c).Delete(ctx, args[1], nil)
	case strings.HasPrefix(words, "role add ") && len(args) == 3:
		err = v2.NewAuthRoleAPI(c).AddRole(ctx, args[2])
	case strings.HasPrefix(words, "role grant --readwrite ") && len(args) == 5:
		path, ok := strings.CutPrefix(args[3], "--path=")
		if !ok {
			return errors.New("no --path")
		}
		_, err = v2.NewAuthRoleAPI(c).GrantRoleKV(ctx, args[4], []string{path}, v2.ReadWritePermission)
	case strings.HasPrefix(words, "user grant --roles=") && len(args) == 4:
		_, err = v2.NewAuthUserAPI(c).GrantUser(ctx, args[3], strings.Split(strings.TrimPrefix(args[2], "--roles="), ","))
	default:
		err = fmt.Errorf("this etcdctl does not know: %s", words)
	}
	return err
}

func etcdctl3(ctx context.Context, c *v3.Client, args []string) (err error) {
	words := strings.Join(args, " ")
	switch {
	case len(args) == 3 && args[0] == "put":
		_, err = c.Put(ctx, args[1], args[2])
	case len(args) == 4 && args[0] == "put" && strings.HasPrefix(args[3], "--lease="):
		var id int64
		if id, err = strconv.ParseInt(strings.TrimPrefix(args[3], "--lease="), 16, 64); err == nil {
			_, err = c.Put(ctx, args[1], args[2], v3.WithLease(v3.LeaseID(id)))
		}
	case len(args) == 3 && args[0] == "lease" && args[1] == "grant":
		var seconds int64
		var given *v3.LeaseGrantResponse
		if seconds, err = strconv.ParseInt(args[2], 10, 64); err == nil {
			if given, err = c.Grant(ctx, seconds); err == nil {
				fmt.Printf("lease %x granted with TTL(%ds)\n", int64(given.ID), given.TTL)
			}
		}
	case len(args) == 2 && args[0] == "del":
		_, err = c.Delete(ctx, args[1])
	case strings.HasPrefix(words, "role add ") && len(args) == 3:
		_, err = c.RoleAdd(ctx, args[2])
	case strings.HasPrefix(words, "role grant-permission --prefix ") && len(args) == 6 && args[4] == "readwrite":
		_, err = c.RoleGrantPermission(ctx, args[3], args[5], v3.GetPrefixRangeEnd(args[5]), v3.PermissionType(v3.PermReadWrite))
	case strings.HasPrefix(words, "user grant-role ") && len(args) == 4:
		_, err = c.UserGrantRole(ctx, args[2], args[3])
	default:
		err = fmt.Errorf("this etcdctl does not know: %s", words)
	}
	return err
}
