"""The Panel app: one engine with the session, any number of pages that look at it."""
