"""The sandbox's memory: JSON documents in one SQLite file, so that what was created survives a restart."""

import json
import sqlite3
from pathlib import Path
from typing import Any

_SCHEMA = """
CREATE TABLE IF NOT EXISTS documents (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    document TEXT NOT NULL,
    UNIQUE (kind, id)
);
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
"""


class Store:
    """Documents by kind and id. Every call is one committed transaction; documents are copies, never shared."""

    def __init__(self, path: Path) -> None:
        """Open the file at `path`, creating it and its folder when they are missing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        # Its documents hold tokens and passwords; the files that SQLite puts beside it get the same mode.
        path.touch(mode=0o600)
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        # WAL without a sync at every commit: a crash of this process loses nothing, only a power cut could.
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(_SCHEMA)

    def put(self, kind: str, id: str, document: dict[str, Any]) -> None:
        """Create or overwrite a document; an overwritten one keeps its place in `list`."""
        self._db.execute(
            "INSERT INTO documents (kind, id, document) VALUES (?, ?, ?)"
            " ON CONFLICT (kind, id) DO UPDATE SET document = excluded.document",
            (kind, id, json.dumps(document)),
        )

    def get(self, kind: str, id: str) -> dict[str, Any] | None:
        """The document, or None."""
        row = self._db.execute("SELECT document FROM documents WHERE kind = ? AND id = ?", (kind, id)).fetchone()
        return None if row is None else _load(row[0])

    def list(self, kind: str) -> list[dict[str, Any]]:
        """All documents of a kind, in the order in which they were first put."""
        rows = self._db.execute("SELECT document FROM documents WHERE kind = ? ORDER BY position", (kind,))
        return [_load(row[0]) for row in rows]

    def delete(self, kind: str, id: str) -> bool:
        """Remove a document; False when there was none."""
        return self._db.execute("DELETE FROM documents WHERE kind = ? AND id = ?", (kind, id)).rowcount > 0

    def next_number(self, name: str) -> int:
        """1, 2, 3, ... for each name; never the same number twice, also after a restart."""
        row = self._db.execute(
            "INSERT INTO counters VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET value = value + 1 RETURNING value",
            (name,),
        ).fetchone()
        return int(row[0])

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def _load(text: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(text)
    return document
