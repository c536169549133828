// Command pulumi-resource-openstack is the Terraform provider for OpenStack behind Pulumi's bridge, with the types that
// this project declares.
package main

import (
	"github.com/pulumi/pulumi-terraform-bridge/v3/pkg/tfbridge"
	shimv2 "github.com/pulumi/pulumi-terraform-bridge/v3/pkg/tfshim/sdk-v2"
	"github.com/terraform-provider-openstack/terraform-provider-openstack/v3/openstack"
)

// Set when it is built: the version of the SDK that it goes with.
var version string

func main() {
	tfbridge.Main("openstack", version, provider(), []byte(`{"name": "openstack"}`))
}

func provider() tfbridge.ProviderInfo {
	info := tfbridge.ProviderInfo{
		P:       shimv2.NewProvider(openstack.Provider()),
		Name:    "openstack",
		Version: version,
		Config: map[string]*tfbridge.SchemaInfo{
			"allow_reauth":  fromEnvironment("OS_ALLOW_REAUTH"),
			"cloud":         fromEnvironment("OS_CLOUD"),
			"delayed_auth":  fromEnvironment("OS_DELAYED_AUTH"),
			"endpoint_type": fromEnvironment("OS_ENDPOINT_TYPE"),
			"insecure":      fromEnvironment("OS_INSECURE"),
			"region":        fromEnvironment("OS_REGION_NAME"),
			"swauth":        fromEnvironment("OS_SWAUTH"),
		},
		Resources: map[string]*tfbridge.ResourceInfo{
			"openstack_blockstorage_volume_v3":             {Tok: "openstack:blockstorage/volume:Volume"},
			"openstack_compute_instance_v2":                {Tok: "openstack:compute/instance:Instance"},
			"openstack_compute_keypair_v2":                 {Tok: "openstack:compute/keypair:Keypair"},
			"openstack_compute_servergroup_v2":             {Tok: "openstack:compute/serverGroup:ServerGroup"},
			"openstack_identity_application_credential_v3": {Tok: "openstack:identity/applicationCredential:ApplicationCredential"},
			"openstack_identity_ec2_credential_v3":         {Tok: "openstack:identity/ec2CredentialV3:Ec2CredentialV3"},
			"openstack_networking_floatingip_v2":           {Tok: "openstack:networking/floatingIp:FloatingIp"},
			"openstack_networking_floatingip_associate_v2": {Tok: "openstack:networking/floatingIpAssociate:FloatingIpAssociate"},
			"openstack_networking_port_v2":                 {Tok: "openstack:networking/port:Port"},
			"openstack_networking_secgroup_v2":             {Tok: "openstack:networking/secGroup:SecGroup"},
			"openstack_networking_secgroup_rule_v2":        {Tok: "openstack:networking/secGroupRule:SecGroupRule"},
			"openstack_objectstorage_container_v1":         {Tok: "openstack:objectstorage/container:Container"},
		},
	}
	info.SetAutonaming(255, "-")
	return info
}

func fromEnvironment(variable string) *tfbridge.SchemaInfo {
	return &tfbridge.SchemaInfo{Default: &tfbridge.DefaultInfo{EnvVars: []string{variable}}}
}
