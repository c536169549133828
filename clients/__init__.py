"""What the program itself asks of OpenStack, GitLab, SSH and Docker. Nothing here declares resources."""


class ClientError(Exception):
    """The outside world does not allow what the stack says; the text is one line for a person."""
