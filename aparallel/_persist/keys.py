"""Signing keys, as users give them."""

from __future__ import annotations


def checked_key(key: str | bytes | None) -> bytes | None:
    """Return a secret as bytes, text in UTF-8.

    Raises:
        ValueError: it is empty.
        TypeError: it is neither text nor bytes.
    """
    if key is None:
        return None
    if isinstance(key, str):
        key = key.encode()
    if not isinstance(key, (bytes, bytearray, memoryview)):
        raise TypeError(f"signing_key must be bytes or text, got {type(key).__name__}.")
    if not len(key):
        raise ValueError("signing_key is empty, so anyone could sign. Use secrets.token_bytes(32), and keep it secret.")
    return bytes(key)
