"""What others answered, as one line for a person: short, and without what may be a secret in it."""

import re

# Enough to tell what is wrong; services repeat in their answers what they were sent.
_MOST_CHARACTERS = 500
# user_data in base64, a key, a long token: no word of a sentence is so long.
_LONG = re.compile(r"[A-Za-z0-9+/=_-]{80,}")
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")
# The prefixes of GitLab's tokens (GitLab docs, "Token overview").
_TOKEN = re.compile(r"\b(gl[a-z]{2,6}|GR1348941)-?[\w.-]{16,}")
_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|$)", re.DOTALL)


def one_line(text: object) -> str:
    """A text of somebody else's in one line."""
    line = str(text)
    for secret in (_KEY, _TOKEN, _CREDENTIALS, _LONG):
        line = secret.sub("[…]", line)
    line = " ".join(line.split())
    return line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]} …"
