package subnet

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"flanneld/pkg/condition"
	"flanneld/pkg/pace"
	"flanneld/pkg/registry"
)

// ConfigReader is the part of a registry that reads the network config.
type ConfigReader interface {
	Config(ctx context.Context) ([]byte, error)
}

// configCondition is the ID of the condition that the network config is missing or invalid.
const configCondition = "network-config"

// errUnusable is the error of readConfig for a config that is missing or invalid.
var errUnusable = errors.New("no valid network config")

// readConfig reads the network config once. If the registry has no valid one, it sets a condition
// with the text invalid or missing.
func readConfig[T any](ctx context.Context, reg ConfigReader, wrong *condition.List, parse func([]byte) (T, error), invalid, missing string) (config T, err error) {
	raw, err := reg.Config(ctx)
	text := invalid
	switch {
	case err == nil:
		if config, err = parse(raw); err == nil {
			wrong.End(configCondition)
			return config, nil
		}
	case errors.Is(err, registry.ErrLongConfig):
	case errors.Is(err, registry.ErrNoConfig):
		text = missing
	default:
		return config, err
	}
	wrong.Set(badConfig(text, err))
	return config, errUnusable
}

// WaitConfig waits until the registry has a network config that parse accepts, and returns the
// result of parse. Problems are reported as conditions. After each attempt, down is called with the
// start of the registry's present outage, or the zero time. WaitConfig returns an error only if ctx
// ends.
func WaitConfig[T any](ctx context.Context, reg ConfigReader, log *slog.Logger, wrong *condition.List, down func(since time.Time), parse func([]byte) (T, error)) (T, error) {
	away := outage{log: log}
	for {
		config, err := readConfig(ctx, reg, wrong, parse, "network config is invalid, waiting for a valid one", "network config is missing, waiting for it")
		switch {
		case err == nil:
			away.end()
			down(away.since)
			return config, nil
		case err == errUnusable:
			away.end()
		case ctx.Err() != nil:
		case errors.Is(err, registry.ErrDenied):
			away.end()
			log.Debug("registry denies reading, will retry", "err", err)
		default:
			away.begin(err)
		}
		if ctx.Err() == nil {
			down(away.since)
		}
		if err := pace.Sleep(ctx, randomBetween(time.Second/2, time.Second)); err != nil {
			return config, err
		}
	}
}

// configEvery is the maximum time between two reads of the network config. Because it changes so
// rarely, polling is cheaper than a watch.
const configEvery = time.Minute

// FollowConfig calls emit with the network config periodically until ctx ends. If the config is
// missing or parse does not accept it, nothing is emitted and a condition is set.
func FollowConfig[T any](ctx context.Context, reg ConfigReader, wrong *condition.List, parse func([]byte) (T, error), emit func(T)) {
	for pace.Sleep(ctx, randomBetween(configEvery/2, configEvery)) == nil {
		config, err := readConfig(ctx, reg, wrong, parse, "new network config is invalid, keeping the old one", "network config was deleted, keeping the old one")
		if err == nil {
			emit(config)
		}
	}
}

// Changed is the cause for the end of a context of WhileConfig: there is a different network
// config.
type Changed[T any] struct{ Config T }

func (Changed[T]) Error() string { return "the network config has changed" }

// WhileConfig returns a context that ends when the network config is no longer the same. settle
// also ends it, and returns the cause if it had ended before: a Changed or the error of ctx, or
// else nil.
func WhileConfig[T any](ctx context.Context, reg ConfigReader, wrong *condition.List, parse func([]byte) (T, error), same func(T) bool) (while context.Context, settle func() error) {
	while, end := context.WithCancelCause(ctx)
	var following sync.WaitGroup
	following.Go(func() {
		FollowConfig(while, reg, wrong, parse, func(c T) {
			if !same(c) {
				end(Changed[T]{c})
			}
		})
	})
	return while, func() error {
		cause := context.Cause(while)
		end(nil)
		following.Wait()
		return cause
	}
}

// badConfig returns the condition that the network config is missing or invalid.
func badConfig(text string, err error) condition.Condition {
	fields := []any{"err", err}
	var remedy interface{ Commands() []string } // one command per API
	if errors.As(err, &remedy) {
		for _, command := range remedy.Commands() {
			fields = append(fields, "command", command)
		}
	}
	return condition.Condition{ID: configCondition, Text: text, Ended: "network config is valid", Fields: fields}
}
