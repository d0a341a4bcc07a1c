"""The process that serves a mount: its start, its end, and what is asked of it from outside."""
