"""Plugins that ship with the package, built only on its public names."""
