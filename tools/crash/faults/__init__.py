"""Faults: each call of the daemon's store fails in turn under a program."""
