"""Stand-ins for the official docker, gitlab and openstack plugins of Pulumi, for machines that cannot download those.

They know the resource types that this project declares, and act as the official plugins are documented to act:
the same inputs and outputs, the same plan, the same calls to the same services. Whatever they do not know they refuse.
"""
