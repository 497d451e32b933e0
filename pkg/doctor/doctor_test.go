package doctor

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

// TestRunIsBounded: a check that hangs, one that panics and one whose input hangs are unknown, with
// the reason, and the others are as without them. The most probable cause is first.
func TestRunIsBounded(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	hang := make(chan struct{})
	defer close(hang)
	slow := newInput(ctx, "slow tool", 50*time.Millisecond, func(context.Context) (int, error) {
		<-hang
		return 0, nil
	})
	result := func(r Result) func(context.Context, *Inputs) Result {
		return func(context.Context, *Inputs) Result { return r }
	}
	checks := []Check{
		{ID: "FL-FINE", Rank: 1, Run: result(okf("fine"))},
		{ID: "FL-SYMPTOM", Rank: 90, Run: result(failf("ping", "a symptom"))},
		{ID: "FL-HANGS", Rank: 1, Run: func(context.Context, *Inputs) Result { <-hang; return okf("") }},
		{ID: "FL-CAUSE", Rank: 20, Run: result(failf("mend it", "a cause"))},
		{ID: "FL-PANICS", Rank: 2, Run: func(context.Context, *Inputs) Result { panic("a fault") }},
		{ID: "FL-SLOW", Rank: 3, Run: func(ctx context.Context, _ *Inputs) Result {
			if _, err := slow.Get(ctx); err != nil {
				return unknownf("%v", err)
			}
			return okf("")
		}},
	}
	seen := 0
	r := Run(ctx, checks, &Inputs{Redact: NewRedactor()}, func(Finding) { seen++ })
	var b bytes.Buffer
	if err := (Style{}).Text(&b, r); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{
		"✗ FL-CAUSE a cause", "mend: mend it", "✗ FL-SYMPTOM a symptom", "mend: ping", "? FL-HANGS not finished after 200ms",
		"? FL-PANICS the check itself failed, please report it: a fault at doctor_test.go:", "? FL-SLOW slow tool: no answer within 50ms", "✓ FL-FINE fine",
		"6 checks: 2 problems, the most probable cause first; 3 could not be checked",
	} {
		lines := strings.Split(b.String(), "\n")
		if got := oneLine(lines[i+1]); !strings.HasPrefix(got, want) {
			t.Errorf("line %d: %q, want %q", i+1, got, want)
		}
	}
	if seen != len(checks) || !r.Failed() {
		t.Errorf("%d of %d findings were announced", seen, len(checks))
	}
}

// TestInputIsReadOnce: many checks share one reading.
func TestInputIsReadOnce(t *testing.T) {
	reads := 0
	i := newInput(t.Context(), "number", time.Minute, func(context.Context) (int, error) {
		reads++
		return 7, errors.New("odd")
	})
	for range 3 {
		if v, err := i.Get(t.Context()); v != 7 || err == nil || err.Error() != "odd" {
			t.Errorf("%d, %v", v, err)
		}
	}
	if reads != 1 {
		t.Errorf("read %d times", reads)
	}
}
