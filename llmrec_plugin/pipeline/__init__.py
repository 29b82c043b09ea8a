"""Stages between a row and a value: functions from text and arrays to arrays, without I/O."""
