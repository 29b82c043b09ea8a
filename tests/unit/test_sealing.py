"""Encrypted values: what the file shows, what other keys see, what is refused."""

import hashlib
import logging
import pickle
import sqlite3
import sys

import numpy as np
import pytest

from llmrec_plugin.errors import MissingExtraError, SettingsError
from llmrec_plugin.runtime.cache import ValueCache
from llmrec_plugin.runtime.sealing import VARIABLE, Checksum, Encryption, load_seal
from llmrec_plugin.runtime.upkeep import verify

pytest.importorskip("cryptography", reason="needs the extra 'encryption'")

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
TEXTS = ("red web server", "", "a lone surrogate \ud800")


def opened(folder, key=KEY):
    return ValueCache(folder, 2**20, seal=Checksum() if key is None else Encryption(key))


def values():
    rng = np.random.default_rng(0)
    return {text: rng.standard_normal(16, dtype=np.float32) for text in TEXTS}


def found(cache):
    try:
        return cache.get_many("encoding", TEXTS)
    finally:
        cache.close()


def bytes_on_disk(folder):
    return b"".join(path.read_bytes() for path in folder.iterdir())


@pytest.fixture
def folder(tmp_path):
    """A cache with values that were written with KEY."""
    cache = opened(tmp_path)
    cache.put_many("encoding", values())
    cache.close()
    return tmp_path


def test_values_come_back_as_they_were(folder):
    got = found(opened(folder))
    assert got.keys() == set(TEXTS)
    for text, vector in values().items():
        np.testing.assert_array_equal(got[text], vector)


def test_the_file_has_neither_a_value_nor_the_hash_of_a_text(folder):
    secret = [vector.tobytes() for vector in values().values()]
    secret += [Checksum().name("encoding", text) for text in TEXTS]
    secret += [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in TEXTS]
    secret += [KEY, KEY.hex().encode()]
    content = bytes_on_disk(folder)
    assert not [part for part in secret if part in content]

    plain = opened(folder, None)
    plain.put_many("encoding", values())
    plain.close()
    assert all(part in bytes_on_disk(folder) for part in secret[:3])  # what the search would find


@pytest.mark.parametrize("key", [OTHER, None], ids=["another key", "no key"])
def test_who_has_not_the_key_finds_nothing_and_changes_nothing(folder, key):
    other = opened(folder, key)
    assert other.get_many("encoding", TEXTS) == {}
    assert verify(other, repair=True).entries == 0
    assert found(other) == {}
    assert found(opened(folder)).keys() == set(TEXTS)


CHANGES = {
    "value": lambda stored: [value[:40] + bytes([value[40] ^ 1]) + value[41:] for value in stored],
    "nonce": lambda stored: [bytes([value[0] ^ 1]) + value[1:] for value in stored],
    "cut": lambda stored: [value[:3] for value in stored],
    "of another text": lambda stored: [*stored[1:], stored[0]],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_was_changed_is_a_miss_and_is_found_by_verify(folder, change, caplog):
    caplog.set_level(logging.WARNING)
    cache = opened(folder)
    connection = sqlite3.connect(cache.path)
    keys, stored = zip(*connection.execute("SELECT key, value FROM entries"), strict=True)
    connection.executemany("UPDATE entries SET value = ? WHERE key = ?", zip(change(stored), keys, strict=True))
    connection.commit()
    connection.close()
    assert cache.get_many("encoding", TEXTS) == {}
    assert "3 of 3 values are damaged" in caplog.text
    assert len(verify(cache, repair=True).damaged) == 3
    assert cache.size()[0] == 0
    cache.close()


def test_values_are_erased_by_text(folder):
    cache = opened(folder)
    assert cache.erase("encoding", TEXTS[:2]) == 2
    assert found(cache).keys() == {TEXTS[2]}


def test_the_same_value_is_never_stored_the_same():
    seal = Encryption(KEY)
    name = seal.name("encoding", "text")
    assert len({seal.seal(name, b"value") for _ in range(100)}) == 100
    assert {seal.open(name, seal.seal(name, b"value")) for _ in range(100)} == {b"value"}


def test_a_key_is_hex_digits_or_a_file_of_them(tmp_path):
    file = tmp_path / "cache.key"
    file.write_text(KEY.hex() + "\n")
    seals = [load_seal({VARIABLE: value}) for value in (KEY.hex(), KEY.hex().upper(), str(file))]
    assert {seal.file for seal in seals} == {Encryption(KEY).file}
    assert load_seal({}).file == load_seal({VARIABLE: " "}).file == Checksum.file


@pytest.mark.parametrize("value", ["ab" * 31 + "zz", "00" * 32, "0102" * 16, "/nowhere/cache.key", "ab" * 33])
def test_what_is_no_key_is_refused_and_not_repeated(value, tmp_path):
    with pytest.raises(SettingsError, match=VARIABLE) as caught:
        load_seal({VARIABLE: value})
    assert value not in str(caught.value)
    file = tmp_path / "cache.key"
    file.write_text(value)
    with pytest.raises(SettingsError, match="openssl rand -hex 32") as caught:
        load_seal({VARIABLE: str(file)})
    assert value not in str(caught.value)


def test_without_the_package_the_extra_is_named_and_nothing_is_stored_in_the_clear(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    monkeypatch.setenv(VARIABLE, KEY.hex())
    with pytest.raises(MissingExtraError, match=r"llmrec-plugin\[encryption\]"):
        ValueCache(tmp_path, 2**20)
    assert not list(tmp_path.iterdir())


def test_a_seal_shows_and_pickles_no_key():
    seal = Encryption(KEY)
    assert KEY.hex() not in repr(seal)
    assert repr(KEY) not in repr(vars(seal))
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(seal)
