package filter

import (
	"strings"
	"time"

	"flanneld/pkg/condition"
	"flanneld/pkg/pace"
)

// fight slows down repairs that another program keeps undoing. Meanwhile there is a condition.
type fight struct {
	pace.Fight
	conditions *condition.List
	id, text   string // of the condition
}

func newFight(conditions *condition.List, id, text string) fight {
	limits := &pace.Limits{Burst: 10, Leak: 5 * time.Second, Pause: 5 * time.Second}
	return fight{pace.Fight{Limits: limits}, conditions, id, text}
}

// synced records a sync, and returns the pause before the next one, 0 unless there is a fight.
func (f *fight) synced(repaired bool, changes []string) (pause time.Duration) {
	now := time.Now()
	if repaired {
		pause = f.Repaired(now)
	}
	if pause > 0 {
		f.conditions.Begin(condition.Condition{
			ID: f.id, Severity: condition.Severe, Text: f.text, Fields: []any{"changes", strings.Join(changes, "; ")},
		})
	} else if !f.On(now) {
		f.conditions.End(f.id)
	}
	return pause
}
