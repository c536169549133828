// Package extended stands for the connection to step-runner, which this build refuses.
package extended

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"

	"gitlab.com/gitlab-org/step-runner/pkg/api/client"
)

var errLeftOut = errors.New("step-runner is left out of this build")

type (
	Dialer interface {
		Dial() (*grpc.ClientConn, error)
	}
	Client       struct{}
	FollowOutput struct{ Logs io.Writer }
)

func New(Dialer) (*Client, error)                    { return nil, errLeftOut }
func (*Client) CloseConn() error                     { return nil }
func (*Client) Cancel(context.Context, string) error { return errLeftOut }

func (*Client) RunAndFollow(context.Context, *client.RunRequest, *FollowOutput) (client.Status, error) {
	return client.Status{}, errLeftOut
}
