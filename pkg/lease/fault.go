package lease

import "errors"

// Fault is what is wrong with a lease, or with an entry that should be one.
type Fault struct {
	Kind   string // constant sentence: the same for all that have the fault
	Detail string // what of it is this one's own, such as the value; may be empty
}

func (f Fault) Error() string {
	if f.Detail == "" {
		return f.Kind
	}
	return f.Kind + ": " + f.Detail
}

// FaultOf returns the fault that an error is about, or one of its own kind.
func FaultOf(err error) Fault {
	var f Fault
	if !errors.As(err, &f) {
		f.Kind = err.Error()
	}
	return f
}
