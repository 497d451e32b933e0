package dataplane

import (
	"reflect"
	"testing"
)

// TestEveryMapHasAKind: NewState allocates a map for each kind, and the names of kinds are unique.
func TestEveryMapHasAKind(t *testing.T) {
	maps, v := 0, reflect.ValueOf(NewState())
	for i := range v.NumField() {
		if f := v.Field(i); f.Kind() == reflect.Map {
			if maps++; f.IsNil() {
				t.Errorf("NewState does not make %s", v.Type().Field(i).Name)
			}
		}
	}
	names := map[string]bool{}
	for _, k := range Kinds() {
		names[k.String()] = true
	}
	if maps != len(kinds) || len(names) != len(kinds) {
		t.Errorf("%d maps, %d kinds, %d names", maps, len(kinds), len(names))
	}
}
