"""Stand-in for the official openstack plugin: compute, storage and networking resources, over openstacksdk.

The calls and their microversions are those of terraform-provider-openstack 3.4, which the official plugin wraps, so
that a cloud (or the sandbox) is asked the same questions.
"""
