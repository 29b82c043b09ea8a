"""The secret keys that draw privacy noise. No key is ever printed, logged, pickled or put into a registry.

``LLMREC_NOISE_KEY`` holds keys of 32 bytes or more in hex digits, parted by commas, or names a file with one key per
line. A declaration names its key by an id, so that a key can be replaced while another is still in use.
"""

from __future__ import annotations

import functools
import hmac
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from llmrec_plugin.errors import SettingsError

VARIABLE = "LLMREC_NOISE_KEY"
_LEAST_BYTES = 32
_LEAST_DISTINCT = 12  # of 32 random bytes fewer than this are distinct once in 10^14 keys
_HEX = re.compile(r"[0-9a-fA-F]+\Z")


class NoiseKey:
    """A secret key.

    Attributes:
        id: 16 hex digits that name it; nothing of the key can be computed from them.
    """

    __slots__ = ("_secret", "id")

    def __init__(self, secret: bytes) -> None:
        if len(secret) < _LEAST_BYTES or len(set(secret)) < _LEAST_DISTINCT:
            raise SettingsError(
                f"A noise key must be {_LEAST_BYTES} random bytes or more ({2 * _LEAST_BYTES} hex digits), got "
                f"{len(secret)} bytes, {len(set(secret))} of them distinct. Make one with "
                "llmrec_plugin.privacy.new_noise_key."
            )
        self._secret = secret
        self.id = self.digest(b"llmrec noise key id").hex()[:16]

    def digest(self, message: bytes) -> bytes:
        """HMAC-SHA256 of `message`, 32 bytes."""
        return hmac.digest(self._secret, message, "sha256")

    def __repr__(self) -> str:
        return f"NoiseKey(id={self.id!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a noise key is not pickled; every process reads it from its own environment")


def new_noise_key(path: Path | str) -> str:
    """Writes a new random key to a file that only this user may read, and gives its id.

    Args:
        path: The file, which must not be there yet. It must never be lost or shared: whoever has it can take the noise
            off; without it no vector can be computed again.

    Raises:
        SettingsError: The file is there already, or cannot be written.
    """
    secret = secrets.token_bytes(_LEAST_BYTES)
    try:
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as exc:
        raise SettingsError(f"The noise key cannot be written to {path} ({exc.strerror}); name a new file.") from exc
    with os.fdopen(number, "w", encoding="ascii") as file:
        file.write(secret.hex() + "\n")
    return NoiseKey(secret).id


def load_noise_key(key_id: str, environ: Mapping[str, str] | None = None) -> NoiseKey:
    """The key of that id, from this process's environment or `environ`.

    Raises:
        SettingsError: It is not there, or what is there is no key.
    """
    env = os.environ if environ is None else environ
    value = env.get(VARIABLE, "").strip()
    if not value:
        raise SettingsError(
            f"{VARIABLE} is not set, so no noise can be drawn with the key {key_id}. Let it name the file of that key "
            "in every process that computes the feature."
        )
    keys = _keys(value) if _is_hex(value) else _keys_of_file(value)
    if key_id not in keys:
        raise SettingsError(
            f"{VARIABLE} holds the key(s) {', '.join(keys)}, but the feature was declared with {key_id}. Add that key, "
            "or declare the new one: all vectors are then other ones and count as released anew."
        )
    return keys[key_id]


def _is_hex(value: str) -> bool:
    return all(_HEX.match(part.strip()) for part in value.split(","))


def _keys_of_file(value: str) -> Mapping[str, NoiseKey]:
    path = Path(value).expanduser()
    try:
        return _read(path, path.stat().st_mtime_ns)
    except OSError as exc:
        raise SettingsError(
            f"{VARIABLE} must be hex digits or name a file with them; the file cannot be read: {exc.strerror}."
        ) from None


@functools.lru_cache(maxsize=4)
def _read(path: Path, _changed: int) -> Mapping[str, NoiseKey]:
    try:
        lines = path.read_text(encoding="ascii").split()
    except UnicodeDecodeError:
        lines = [""]
    if not lines or not all(map(_is_hex, lines)):
        raise SettingsError(f"{VARIABLE} names {path}, which must hold keys in hex digits, one per line.")
    return _keys(",".join(lines))


@functools.lru_cache(maxsize=4)
def _keys(value: str) -> Mapping[str, NoiseKey]:
    parts = [part.strip() for part in value.split(",")]
    if any(len(part) % 2 for part in parts):
        raise SettingsError(f"{VARIABLE} holds a key with an odd number of hex digits; two make a byte.")
    keys = [NoiseKey(bytes.fromhex(part)) for part in parts]
    return {key.id: key for key in keys}
