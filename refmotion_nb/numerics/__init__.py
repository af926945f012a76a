"""Arrays in, arrays out: NumPy or CuPy; no files, no xarray, no param."""
