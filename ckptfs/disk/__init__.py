"""The filesystem below: its calls, what they read and digest, threads and locks."""
