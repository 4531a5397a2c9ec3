"""The doctor of a site: before it connects, every check of what can be wrong, and how to mend it.

One function per check; each returns a finding and none raises. A check that depends on a failed one (no TLS without
a route) is skipped, all others run, so that one list names every problem. No finding leaves the machine.
"""
