"""Proof under crashes: power cuts at block level, kills at every step, faults at every call.

    python -m ckptfs.tools.crash --help

Each study is a module with a command of its own. Results go to a file line by line; an interrupted
study goes on with what is not there yet.
"""
