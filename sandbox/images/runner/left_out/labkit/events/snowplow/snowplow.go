// Package snowplow stands for the billing events of GitLab's own runners: creating an emitter is refused.
package snowplow

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"gitlab.com/gitlab-org/labkit/v2/events/snowplow/metrics"
	"gitlab.com/gitlab-org/labkit/v2/events/snowplow/oidc"
)

var errLeftOut = errors.New("snowplow is left out of this build")

type (
	SendResult struct {
		EventCount, StatusCode int
		Err                    error
	}
	SendCallback              func(successes, failures []SendResult)
	Emitter                   struct{}
	EmitterOption             struct{}
	Tracker                   struct{}
	BillingEventRequiredInput struct {
		Category, EventType, Realm, UnitOfMeasure string
		Quantity                                  float64
	}
	BillingEventOptionalInput struct {
		Subject, DeploymentType, InstanceID, UniqueInstanceID   string
		ProjectID, NamespaceID, RootNamespaceID, OrganizationID int64
		Metadata                                                map[string]any
	}
)

func WithCallback(SendCallback) EmitterOption                              { return EmitterOption{} }
func WithTokenSource(oidc.Source) EmitterOption                            { return EmitterOption{} }
func WithMetricsCollectorOptions(...metrics.CollectorOption) EmitterOption { return EmitterOption{} }
func NewEmitter(string, ...EmitterOption) (*Emitter, error)                { return nil, errLeftOut }
func NewTracker(string, *Emitter) (*Tracker, error)                        { return nil, errLeftOut }
func (*Emitter) Collector() prometheus.Collector                           { return nil }
func (*Tracker) Stop()                                                     {}

func (*Tracker) TrackBillingEventWithOptionalInput(BillingEventRequiredInput, BillingEventOptionalInput) error {
	return errLeftOut
}
