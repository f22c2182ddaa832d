"""A benchmark suite in three parts that do not know each other.

A *contender* (contenders/) is one way to run Python functions on other cores, behind the few verbs of contender.py.
A *work* (works/) is one thing to do with them, and what to measure meanwhile.
rounds.py lets every contender take its turn at a work, each turn in a process of its own, and report.py compares.
"""
