"""What several tests render."""

from renderers.config_toml import ConfigToml

PLAIN = ConfigToml(
    name="dev-1-app",
    url="https://gitlab.example",
    token="glrt-token",
    concurrent=4,
    check_interval=3,
    log_level="info",
    log_format="json",
    limit=2,
    image="debian:13-slim",
)
"""A manager of which nothing is said that need not be."""
