"""`pulumi-resource-docker`, as the engine starts it."""

from ..serve import main
from .plugin import Docker

main(Docker())
