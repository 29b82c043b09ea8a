"""The checks: small functions that take a `Subject` (or what a plugin declares) and raise `CheckFailed`."""
