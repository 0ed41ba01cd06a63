"""Checks against the machine itself: plain references, and what they count."""
