"""Torture: real processes in network namespaces of their own, killed, stopped, cut off and robbed of
drives, while every byte that they serve is checked.

    parts.py     a cluster whose processes are started here one by one, each where and how a test likes
    network.py   namespaces, links between them, and what is done to those
    drives.py    the drives that fail: their files, their file systems
    load.py      front ends that check every byte, and a guest
    faults.py    the kinds of faults, and waves of them drawn from a seed
    rounds.py    one cluster, wave after wave, and everything that must be so at the end
    points.py    every named crash point of every process

It uses the modules of `scripts/e2e`. `python3 scripts/torture --help` runs it.
"""
