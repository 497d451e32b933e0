package lease

import "errors"

// Fault is what is wrong with a lease or with an invalid entry.
type Fault struct {
	Kind   string // constant sentence, which groups equal faults
	Detail string // specific part, such as the value; may be empty
}

func (f Fault) Error() string {
	if f.Detail == "" {
		return f.Kind
	}
	return f.Kind + ": " + f.Detail
}

// FaultOf returns the fault in an error, or a fault with the error's text.
func FaultOf(err error) Fault {
	var f Fault
	if !errors.As(err, &f) {
		f.Kind = err.Error()
	}
	return f
}
