"""What a change does to the stacks, as one comment on its merge request or pull request."""


class HostError(Exception):
    """GitLab or GitHub cannot be reached, or refuses what was to be posted; one line that says what to do."""
