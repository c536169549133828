package spec

import "errors"

var errInputs = errors.New("job inputs are left out of this build")

// Inputs of a job; this build refuses a job that has any.
type Inputs struct{}

type InputExpander interface{ Expand(*Inputs) error }

type InputInterpolationError struct{}

func (*InputInterpolationError) Error() string { return errInputs.Error() }

func (*Inputs) UnmarshalJSON(data []byte) error {
	if text := string(data); text != "[]" && text != "null" {
		return errInputs
	}
	return nil
}

func (*Inputs) SetMetricsCollector(*JobInputsMetricsCollector) {}

func ExpandInputs(*Inputs, any) error { return nil }
