"""End-to-end tests: real processes, real sockets, real guests; nothing is stubbed.

    framework.py   scenarios, how they are run and reported
    cluster.py     one `cleave dev`, and what a test does to it
    verifier.py    one `cleave-verify`
    errors.py, guests.py, frontend.py, lifecycle.py    the scenarios

`python3 scripts/e2e --help` runs them.
"""
