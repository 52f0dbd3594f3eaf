"""What every room may use: names, dtypes, devices, errors."""
