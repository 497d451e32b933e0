package condition

// Reported is an error that is a condition already: whoever gets it need not log it.
type Reported struct{ Err error }

// Error implements error.
func (e Reported) Error() string { return e.Err.Error() }

// Unwrap returns the error itself.
func (e Reported) Unwrap() error { return e.Err }
