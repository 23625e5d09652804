package docker

import (
	"context"

	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/denia-paas/denia/platform"
)

// buildSecrets hands a build's secrets to the steps that mount them. They
// cross the session only, and get into no layer and no cache key.
type buildSecrets platform.Env

var (
	_ session.Attachable    = buildSecrets(nil)
	_ secrets.SecretsServer = buildSecrets(nil)
)

func (s buildSecrets) Register(server *grpc.Server) { secrets.RegisterSecretsServer(server, s) }

func (s buildSecrets) GetSecret(_ context.Context, r *secrets.GetSecretRequest) (*secrets.GetSecretResponse, error) {
	value, ok := s[r.ID]
	if !ok {
		return nil, status.Errorf(codes.NotFound, "the service has no build secret %q", r.ID)
	}
	return &secrets.GetSecretResponse{Data: []byte(value)}, nil
}
