"""How the value cache names and stores its entries: in the clear with a checksum, or encrypted with a key.

``LLMREC_CACHE_KEY`` holds a key of 32 bytes as 64 hex digits, or names a file with them. Without it, an entry's name is
a hash of its text, so who can read the file can test whether a text that they guess was there, and read its value.
With it, the name is a keyed hash (HMAC-SHA256), and the value is encrypted and authenticated with AES-256-GCM
(NIST SP 800-38D) under a random nonce, its name and so its text included: what was changed, or moved to another text,
is a miss. Each key has a file of its own, so another key finds nothing, rather than damage.

A key is good for 2^32 values (SP 800-38D, 8.3): at a thousand a second, for seven weeks without a pause. Make a new one
then and delete the old file.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from llmrec_plugin.errors import MissingExtraError, SettingsError

VARIABLE = "LLMREC_CACHE_KEY"
_NONCE_BYTES = 12
_HEX = re.compile(r"[0-9a-fA-F]{64}")


class Seal(Protocol):
    """Names and stores entries."""

    file: str
    """Name of the cache's file."""

    def name(self, fingerprint: str, text: str) -> bytes:
        """The 32 bytes under which the value of a text is stored."""
        ...

    def seal(self, name: bytes, data: bytes) -> bytes:
        """What is stored of a value."""
        ...

    def open(self, name: bytes, stored: bytes) -> bytes | None:
        """The value; None if it is damaged, or belongs to another name."""
        ...


class Checksum:
    """In the clear, with a checksum over name and value."""

    file = "values.sqlite"

    def name(self, fingerprint: str, text: str) -> bytes:
        return hashlib.sha256(_identity(fingerprint, text)).digest()

    def seal(self, name: bytes, data: bytes) -> bytes:
        return _checksum(name, data) + data

    def open(self, name: bytes, stored: bytes) -> bytes | None:
        checksum, data = stored[:4], stored[4:]
        return data if _checksum(name, data) == checksum else None


class Encryption:
    """Encrypted, see the module.

    Args:
        secret: 32 random bytes.

    Raises:
        MissingExtraError: The package cryptography is not installed.
    """

    def __init__(self, secret: bytes) -> None:
        try:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ModuleNotFoundError as exc:
            raise MissingExtraError("cryptography", "encryption", VARIABLE) from exc
        # One key per purpose.
        derived = (hmac.digest(secret, purpose, "sha256") for purpose in (b"file", b"names", b"values"))
        file, self._names, values = derived
        self.file = f"values-{file.hex()[:16]}.sqlite"
        self._cipher, self._invalid = AESGCM(values), InvalidTag

    def name(self, fingerprint: str, text: str) -> bytes:
        return hmac.digest(self._names, _identity(fingerprint, text), "sha256")

    def seal(self, name: bytes, data: bytes) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, data, name)

    def open(self, name: bytes, stored: bytes) -> bytes | None:
        try:
            return self._cipher.decrypt(stored[:_NONCE_BYTES], stored[_NONCE_BYTES:], name)
        except (self._invalid, ValueError):  # ValueError: the nonce was cut
            return None

    def __repr__(self) -> str:
        return f"Encryption(file={self.file!r})"

    def __reduce__(self) -> str:
        raise TypeError("A cache's key is not pickled; each process reads its own from its environment.")


def load_seal(environ: Mapping[str, str] | None = None) -> Seal:
    """How entries are stored by this process's environment, or `environ`.

    Raises:
        SettingsError: What ``LLMREC_CACHE_KEY`` holds or names is no key.
        MissingExtraError: The package cryptography is not installed.
    """
    value = (os.environ if environ is None else environ).get(VARIABLE, "").strip()
    if not value:
        return Checksum()
    digits = value if _HEX.fullmatch(value) else _read(Path(value).expanduser())
    if not _HEX.fullmatch(digits) or len(set(bytes.fromhex(digits))) < 8:
        raise SettingsError(
            f"{VARIABLE} must be 32 random bytes as 64 hex digits, or name a file with them, which its value is not. "
            "Make one: openssl rand -hex 32"
        )
    return Encryption(bytes.fromhex(digits))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError as exc:
        raise SettingsError(
            f"{VARIABLE} must be 64 hex digits or name a file with them; the file cannot be read: {exc.strerror}. "
            "Values are not stored in the clear instead."
        ) from exc


def _identity(fingerprint: str, text: str) -> bytes:
    return f"{fingerprint}\n{text}".encode("utf-8", "surrogatepass")


def _checksum(name: bytes, data: bytes) -> bytes:
    return zlib.crc32(data, zlib.crc32(name)).to_bytes(4, "little")
