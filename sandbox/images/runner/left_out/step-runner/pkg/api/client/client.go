// Package client stands for the client of step-runner, the service behind a job's `run` keyword.
package client

import "time"

type State int

const (
	StateUnspecified State = iota
	StateSuccess
	StateCancelled
)

type ErrorKind int

const (
	ErrorUnknown ErrorKind = iota
	ErrorInternal
	ErrorStepFailure
	ErrorCancelled
	ErrorTimeout
)

type (
	Status struct {
		State     State
		ErrorKind ErrorKind
		Message   string
	}
	Variable struct {
		Key, Value   string
		File, Masked bool
	}
	RunRequest struct {
		Id, WorkDir, BuildDir, Steps string
		Timeout                      *time.Duration
		Env                          map[string]string
		Variables                    []Variable
	}
)
