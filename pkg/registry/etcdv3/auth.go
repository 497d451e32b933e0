package etcdv3

import (
	"context"
	"errors"
	"fmt"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"flanneld/pkg/registry"
	"flanneld/pkg/registry/etcd"
)

// token is the token that etcd has issued for the password. It expires after some minutes without
// use, at a restart of etcd, and after a change of users.
type token struct {
	text  string
	known bool // an empty token is known to be right: etcd requires none
}

// authenticate adds the token to a request. It requests one if there is none.
func (l *link) authenticate(ctx context.Context) (context.Context, token, error) {
	if l.endpoints.Username == "" {
		return ctx, token{}, nil
	}
	var t token
	select {
	case t = <-l.token:
	case <-ctx.Done():
		return ctx, t, ctx.Err()
	}
	defer func() { l.token <- t }()
	if !t.known {
		resp, err := l.login.Authenticate(ctx, &pb.AuthenticateRequest{Name: l.endpoints.Username, Password: l.endpoints.Password})
		switch {
		case refused(err, rpctypes.ErrAuthNotEnabled):
			t = token{known: true}
		case err != nil:
			return ctx, t, &loginError{l.endpoints.Username, err}
		default:
			t = token{resp.Token, true}
		}
	}
	if t.text != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, rpctypes.TokenFieldNameGRPC, t.text)
	}
	return ctx, t, nil
}

// loginError means that etcd issues no token.
type loginError struct {
	user string
	err  error
}

func (e *loginError) Error() string { return fmt.Sprintf("log in as %q: %v", e.user, e.err) }
func (e *loginError) Unwrap() error { return e.err }

// forget drops a rejected token, unless there is a newer one.
func (l *link) forget(used token) {
	t := <-l.token
	if t == used {
		t = token{}
	}
	l.token <- t
}

// tokenRefused reports whether a request was rejected, and not done, because of its token.
func tokenRefused(err error) bool {
	return refused(err, rpctypes.ErrInvalidAuthToken) || refused(err, rpctypes.ErrAuthOldRevision) || refused(err, rpctypes.ErrUserEmpty)
}

// facts returns code and text of an error of etcd or gRPC.
func facts(err error) (codes.Code, string) {
	var said rpctypes.EtcdError
	var plain interface{ GRPCStatus() *status.Status }
	switch {
	case err == nil:
		return codes.OK, ""
	case errors.As(err, &said):
		return said.Code(), said.Error()
	case errors.As(err, &plain):
		return plain.GRPCStatus().Code(), plain.GRPCStatus().Message()
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded, err.Error()
	case errors.Is(err, context.Canceled):
		return codes.Canceled, err.Error()
	}
	return codes.Unknown, err.Error()
}

// refused reports whether err is this error of etcd.
func refused(err, refusal error) bool {
	_, text := facts(err)
	return err != nil && text == refusal.Error()
}

// explain names the endpoints and what is wrong with those that cannot be connected to.
func (l *link) explain(err error) error {
	var done *etcd.Failure
	cause := err
	if err == nil || errors.As(err, &done) || errors.Is(err, context.Canceled) {
		return err
	}
	code, text := facts(err)
	switch {
	case code == codes.DeadlineExceeded:
		text = "no answer in time"
	case code == codes.Unimplemented || strings.Contains(text, "server preface") || strings.Contains(text, "HTTP status code"):
		text = "does not speak etcd's v3 API: " + text
		// For an HTTP/1 server, such as etcd 2, gRPC quotes the answer.
		if code == codes.Unimplemented || strings.Contains(text, "looked like an HTTP/1.1 header") {
			cause = errors.Join(err, registry.ErrNoAPI)
		}
	}
	switch {
	case refused(err, rpctypes.ErrAuthFailed) || refused(err, rpctypes.ErrUserEmpty):
		cause = errors.Join(err, registry.ErrLogin)
	case refused(err, rpctypes.ErrPermissionDenied):
		cause = errors.Join(err, registry.ErrDenied)
	}
	var login *loginError
	if errors.As(err, &login) {
		text = fmt.Sprintf("log in as %q: %s", login.user, text)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var all, bad []string
	for _, e := range l.endpoints.All {
		all = append(all, e.String())
		if trouble := l.peers[e.String()].trouble; trouble != nil {
			bad = append(bad, e.String()+": "+trouble.Error())
		}
	}
	if len(bad) == len(all) {
		text = "no etcd endpoint answers: " + strings.Join(bad, "; ")
	} else {
		text = strings.Join(append([]string{"etcd at " + strings.Join(all, ", ") + ": " + text}, bad...), "; ")
	}
	return &etcd.Failure{Text: strings.Join(strings.Fields(text), " "), Cause: cause}
}

// Roles returns the roles of a user, which is the one that etcd knows this client as. A user may
// ask for its own roles.
func (r *Registry) Roles(ctx context.Context, user string) (roles []string, err error) {
	err = r.link.read(ctx, answerTimeout, func(ctx context.Context) error {
		resp, err := r.link.login.UserGet(ctx, &pb.AuthUserGetRequest{Name: user})
		roles = resp.GetRoles()
		return err
	})
	return roles, err
}
