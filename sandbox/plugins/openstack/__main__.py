"""`pulumi-resource-openstack`, as the engine starts it."""

from ..serve import main
from .plugin import OpenStack

main(OpenStack())
