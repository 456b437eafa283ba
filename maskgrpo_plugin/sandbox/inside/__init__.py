"""What runs inside a sandbox: standard library only, imported by relative names, so that it can be sent elsewhere.

Every sandbox starts a Python, so what these modules import at once is paid for each program: dataclasses, typing and
the like are left out or imported where they are used.
"""
