"""The Python SDK that an application imports.

`Plaudit` and `AsyncPlaudit` say what went wrong, `Capture` never disturbs its host: see docs/capture.md.
"""

from plaudit.client.api import DEFAULT_URL, AsyncPlaudit, Plaudit
from plaudit.client.capture import Capture
from plaudit.client.visitors import visitor

__all__ = ["DEFAULT_URL", "AsyncPlaudit", "Capture", "Plaudit", "visitor"]
