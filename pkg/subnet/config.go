package subnet

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"flanneld/pkg/pace"
	"flanneld/pkg/registry"
)

// ConfigReader is the part of a registry that has the network config.
type ConfigReader interface {
	Config(ctx context.Context) ([]byte, error)
}

// WaitConfig waits until the registry holds a network config that parse
// accepts, and returns what parse made of it. What stands in the way is said
// once, and again when it is something else. The only error is that of ctx.
func WaitConfig[T any](ctx context.Context, reg ConfigReader, log *slog.Logger, parse func([]byte) (T, error)) (T, error) {
	away := outage{log: log}
	say := complaint{log: log}
	for {
		raw, err := reg.Config(ctx)
		switch {
		case err == nil:
			away.end()
			config, err := parse(raw)
			if err == nil {
				return config, nil
			}
			say.of("network config is invalid, waiting for a better one", err)
		case ctx.Err() != nil:
		case errors.Is(err, registry.ErrLongConfig):
			away.end()
			say.of("network config is invalid, waiting for a better one", err)
		case errors.Is(err, registry.ErrNoConfig):
			away.end()
			say.of("network config is missing, waiting for it", err)
		case errors.Is(err, registry.ErrDenied):
			away.end()
			say.said = ""
			log.Debug("registry refuses to be read, trying again", "err", err)
		default:
			away.begin(err)
			say.said = ""
		}
		if err := pace.Sleep(ctx, between(time.Second/2, time.Second)); err != nil {
			var none T
			return none, err
		}
	}
}

// configEvery bounds the time between two looks at the network config. It
// changes once in years, so that a look now and then costs less than a watch.
const configEvery = time.Minute

// FollowConfig gives the network config to emit, again and again until ctx ends. One that
// parse does not accept, or none, leaves everything as it is, and is said once.
func FollowConfig[T any](ctx context.Context, reg ConfigReader, log *slog.Logger, parse func([]byte) (T, error), emit func(T)) {
	say := complaint{log: log}
	for pace.Sleep(ctx, between(configEvery/2, configEvery)) == nil {
		raw, err := reg.Config(ctx)
		switch {
		case err == nil:
			config, err := parse(raw)
			if err != nil {
				say.of("the new network config is invalid, going on with the old one", err)
				continue
			}
			say.said = ""
			emit(config)
		case errors.Is(err, registry.ErrLongConfig):
			say.of("the new network config is invalid, going on with the old one", err)
		case errors.Is(err, registry.ErrNoConfig):
			say.of("the network config is gone, going on with the old one", err)
		}
	}
}

// complaint says what is wrong once, until something else is.
type complaint struct {
	log  *slog.Logger
	said string
}

func (c *complaint) of(msg string, err error) {
	text := msg + err.Error()
	if text == c.said {
		return
	}
	c.said = text
	fields := []any{"err", err}
	var remedy interface{ Commands() []string }
	if errors.As(err, &remedy) {
		for _, command := range remedy.Commands() {
			fields = append(fields, "command", command)
		}
	}
	c.log.Warn(msg, fields...)
}
