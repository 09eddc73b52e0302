"""Values as a reader wants them: the filters of the templates."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup


def number(value: Any) -> str:
    """At most four digits that matter: 0.6931, 12.35, 1,234; a dash where there is none."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if isinstance(value, float):
        if not math.isfinite(value):
            return "not a number" if math.isnan(value) else "∞" if value > 0 else "−∞"
        text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
        return text.replace("-", "−")
    return str(value)


def duration(seconds: float | None) -> str:
    """0.35 s, 8 s, 3:05 min, 2:10 h, 3 d 4 h; a dash where there is none."""
    if seconds is None:
        return "–"
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    if hours:
        return f"{hours}:{minutes:02} h"
    return f"{minutes}:{rest:02} min" if minutes else f"{rest} s"


def moment(value: datetime | None) -> Markup | str:
    """A <time> in UTC, which the script turns into the reader's own; a dash where there is none."""
    if value is None:
        return "–"
    at = value.astimezone(UTC)
    return Markup('<time datetime="{}">{}</time>').format(at.isoformat(timespec="seconds"), f"{at:%Y-%m-%d %H:%M} UTC")


def plain(value: Any) -> Any:
    """A value for the JSON and CSV twins: times in ISO 8601, None for a float that JSON cannot say, everything else as it is."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value


def percent(fraction: float) -> str:
    """0.415 -> 42 %."""
    return f"{fraction:.0%}".replace("%", " %")
