"""Names that no stack, team or environment may have, each of which means something to a shell, to make or to a path."""

HOSTILE = (
    "b;touch${IFS}made;#",
    "$(touch made)",
    "$(shell touch made)",
    "`touch made`",
    '"; touch made; "',
    "a\ntouch made",
    "a b",
    "-x",
    "--stack=prod",
    "a-",
    "..",
    "a..b",
    "$STACK",
    "${{ secrets.X }}",
    "größe",
    "a\u0661",
    "a\u202eb",
    "A",
    "a_b",
    "a" * 64,
)
