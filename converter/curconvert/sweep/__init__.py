"""Many sizes of one model from one calibration: a table and a plot of what each costs."""
