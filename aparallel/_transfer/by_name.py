"""What travels as its name, where others of its kind are pickled by value. Loaded when first needed."""

from __future__ import annotations

import sys
from typing import Any

import cloudpickle


def is_by_name(module: str) -> bool:
    """Whether what *module* has travels as its name: both sides have it, and the user did not ask for anything else."""
    registered = cloudpickle.list_registry_pickle_by_value()
    return module != "__main__" and not any(f"{module}.".startswith(f"{name}.") for name in registered)


def can_be_imported(thing: Any, name: str) -> bool:
    """Whether *thing* travels as *name*, which its module has it by."""
    module = thing.__module__
    return is_by_name(module) and getattr(sys.modules.get(module), name, None) is thing
