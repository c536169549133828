"""Stand-in for the official docker plugin: images, volumes and containers, over the Docker SDK for Python."""
