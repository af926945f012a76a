"""What people compose: one param object per stage, the session and its executors."""
