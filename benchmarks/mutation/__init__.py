"""Mutation score: small changes to compiler/ir, passes and training, and whether the tests notice.

mutants.py draws changes, cosmic.py has cosmic-ray make them, recording.py notes which test runs which line and for
how long, choice.py picks the tests of a change, trial.py runs them on it in a child process, study.py counts.
"""
