// Package facts compares what a provider built here knows with the facts kept of the official plugin's schema.
package facts

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/pulumi/pulumi-terraform-bridge/v3/pkg/tfbridge"
	shim "github.com/pulumi/pulumi-terraform-bridge/v3/pkg/tfshim"
)

type property struct {
	Input   bool `json:"input"`
	Replace bool `json:"replace"`
	Secret  bool `json:"secret"`
}

// Compare fails the test for every property of a declared type that only one of the two has, and for every input whose
// change replaces it in only one of them.
func Compare(t *testing.T, provider tfbridge.ProviderInfo) {
	t.Helper()
	text, err := os.ReadFile("../../../sandbox/plugins/schema/" + provider.Name + ".json")
	if err != nil {
		t.Fatal(err)
	}
	var official struct {
		Resources map[string]map[string]property `json:"resources"`
	}
	if err := json.Unmarshal(text, &official); err != nil {
		t.Fatal(err)
	}
	if len(provider.Resources) != len(official.Resources) {
		t.Errorf("%d types, of %d", len(provider.Resources), len(official.Resources))
	}
	for name, resource := range provider.Resources {
		properties, known := official.Resources[string(resource.Tok)]
		if !known {
			t.Errorf("%s: no such type", resource.Tok)
			continue
		}
		schema := provider.P.ResourcesMap().Get(name).Schema()
		schema.Range(func(key string, built shim.Schema) bool {
			if key == "id" {
				return true
			}
			name := tfbridge.TerraformToPulumiNameV2(key, schema, resource.Fields)
			expected, known := properties[name]
			if !known {
				t.Errorf("%s: %s is new", resource.Tok, name)
			} else if expected.Input && built.ForceNew() != expected.Replace {
				t.Errorf("%s: a change of %s replaces: %v", resource.Tok, name, built.ForceNew())
			} else if built.Sensitive() != expected.Secret {
				t.Errorf("%s: %s is secret: %v", resource.Tok, name, built.Sensitive())
			}
			delete(properties, name)
			return true
		})
		for name := range properties {
			t.Errorf("%s: %s is missing", resource.Tok, name)
		}
	}
}
