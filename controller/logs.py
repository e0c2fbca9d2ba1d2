"""Structured logs: one line an event, a fixed message with its variables as fields, and never a value of an env."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from controller.protocol.model import Key
from controller.protocol.text import harmless, visible


def about(key: Key | None = None, **fields: object) -> dict[str, Any]:
    """Return the `extra` of a log line: its fields, and the sandbox and attempt that it is about."""
    attempt = {} if key is None else {"sandbox": str(key.sandbox_id), "attempt": key.attempt}
    return {"fields": fields | attempt}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the event's fields beside them."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line = line | _fields(record) | line  # a field replaces no part of the line
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class ConsoleFormatter(logging.Formatter):
    """Time, level, message, and the fields as name=value; nothing in it can steer a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S.%f")[:-3]
        fields = "".join(f" {name}={visible(_quoted(str(value)))}" for name, value in _fields(record).items())
        trace = "\n" + harmless(self.formatException(record.exc_info)) if record.exc_info else ""
        return f"{at} {record.levelname.lower():7} {visible(record.getMessage())}{fields}{trace}"


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return dict(getattr(record, "fields", {}))


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if not value or {*value} & {" ", '"', "="} else value


def set_up(log_format: str) -> None:
    """Send the process's logs to standard error in this format, `json` or `console`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else ConsoleFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)  # the store reports each lost connection once
