"""Lets one thread at a time run a net: hooks that collect outputs of its layers would see those of another's pass."""

import threading
import weakref
from typing import Any

_locks: "weakref.WeakKeyDictionary[Any, threading.RLock]" = weakref.WeakKeyDictionary()
_guard = threading.Lock()


def lock_of(net: Any) -> "threading.RLock":
    """Give the lock of a net; its passes and its heat maps hold it."""
    with _guard:
        return _locks.setdefault(net, threading.RLock())
