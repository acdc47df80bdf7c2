"""Tests of the userspace NVMe driver in guests; see `__main__.py`."""
