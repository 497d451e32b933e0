package condition

// Reported is an error for which a condition was set already, so that callers need not log it.
type Reported struct{ Err error }

// Error implements error.
func (e Reported) Error() string { return e.Err.Error() }

// Unwrap returns the error itself.
func (e Reported) Unwrap() error { return e.Err }
