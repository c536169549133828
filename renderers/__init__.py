"""Pure functions from values to the text of a configuration file. Nothing here knows Pulumi."""
