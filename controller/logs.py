"""Structured logs: one line an event, with the sandbox and attempt where it has one, never an env value."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from controller.protocol.model import Key
from controller.protocol.text import harmless, visible

FIELDS = ("sandbox", "attempt")


def about(key: Key) -> dict[str, Any]:
    """The `extra` of a log line about this attempt."""
    return {"sandbox": str(key.sandbox_id), "attempt": key.attempt}


class Json(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line)


class Console(logging.Formatter):
    """Time, level, message and what it is about; nothing in it can steer a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S.%f")[:-3]
        about = "".join(f" {name}={getattr(record, name)}" for name in FIELDS if hasattr(record, name))
        trace = "\n" + harmless(self.formatException(record.exc_info)) if record.exc_info else ""
        return f"{at} {record.levelname.lower():7} {visible(record.getMessage())}{about}{trace}"


def set_up(log_format: str) -> None:
    """Sends the process's logs to standard error in this format, `json` or `console`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Json() if log_format == "json" else Console())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)  # each lost connection is told once, by the queue
