// Package oidc stands for the credentials of billing events.
package oidc

type (
	Option struct{}
	Source struct{}
)

func WithSkipIfUnsupportedCloud(bool) Option { return Option{} }
func NewSource(...Option) Source             { return Source{} }
