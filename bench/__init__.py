"""How long the program takes, measured against a bare one: `make bench`."""
