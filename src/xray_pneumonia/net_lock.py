"""Locks a net for one thread: its forward hooks would collect the activations of another thread's pass."""

import threading
import weakref
from typing import Any

_locks: "weakref.WeakKeyDictionary[Any, threading.RLock]" = weakref.WeakKeyDictionary()
_guard = threading.Lock()


def lock_of(net: Any) -> "threading.RLock":
    """Give the lock of a net; its passes and its heat maps hold it."""
    with _guard:
        return _locks.setdefault(net, threading.RLock())
