"""Proof under crashes: power cuts at block level, kills at every step, faults at every call.

    python -m ckptfs.tools.crash --help

Each study is a folder; its command is in ``study``. Results go to a file line by line; an
interrupted study goes on with what is not there yet.
"""
