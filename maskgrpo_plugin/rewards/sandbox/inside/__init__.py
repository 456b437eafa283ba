"""What runs inside a sandbox: standard library only, imported by relative names, so that it can be sent elsewhere."""
