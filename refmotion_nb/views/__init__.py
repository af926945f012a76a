"""What people see: reprs, plots, the report."""
