"""Verification: every op's cases, run on every backend and compared with float64 reference math. See docs/verify.md."""
