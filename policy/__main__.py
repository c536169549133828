"""Where Pulumi begins: it runs this folder, with `--policy-pack policy`."""

from guard_rails.pack import serve

serve()
