package memory_test

import (
	"testing"

	"flanneld/pkg/registry/memory"
	"flanneld/pkg/registry/registrytest"
)

func TestContract(t *testing.T) {
	registrytest.Run(t, func(t *testing.T) registrytest.Harness {
		r := memory.New()
		return registrytest.Harness{
			Registry:      r,
			SetConfig:     func(v string) { r.SetConfig([]byte(v)) },
			Put:           r.Put,
			Remove:        r.Remove,
			RemoveAll:     r.RemoveAll,
			ForgetHistory: func() { r.SetHistory(0); r.SetHistory(1000) },
		}
	})
}
