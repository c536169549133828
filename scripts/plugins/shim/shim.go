// Package shim opens the docker provider's internal package: its path lies below the provider's.
package shim

import (
	"github.com/hashicorp/terraform-plugin-sdk/v2/helper/schema"
	"github.com/terraform-providers/terraform-provider-docker/internal/provider"
)

// NewProvider returns the Terraform provider with what it has on the plugin SDK: containers, images and volumes among
// it.
func NewProvider(version string) *schema.Provider {
	return provider.New(version)()
}
