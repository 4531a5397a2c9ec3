"""The doctor of a site: before it connects, every check of what can be wrong, and how to mend it.

One function per check; each returns a finding and none raises. A check whose ground is missing (no TLS without a
route) is skipped, all others run, so that one evening and one list are enough. No finding leaves the machine.
"""
