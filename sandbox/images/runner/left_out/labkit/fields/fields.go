// Package fields names fields of log lines.
package fields

const (
	HTTPStatusCode = "status"
	DurationS      = "duration_s"
)

// Field tells what a deprecated field is called now.
type Field struct{ Standard string }

// Deprecated and VariantVersion are empty: every field keeps the name that the caller gives it.
var (
	Deprecated     = map[string]Field{}
	VariantVersion = map[string]int{}
)
