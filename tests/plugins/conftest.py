"""Packages of their own: `tests/integration/test_third_party_plugin.py` installs them and runs their tests."""

collect_ignore_glob = ["*"]
