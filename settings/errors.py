"""What a wrong configuration is told by, and the namespace of the program's own keys."""

NAMESPACE = "gitlab-runners"


class SettingsError(Exception):
    """The stack's configuration is wrong; the text has one line for each mistake."""
