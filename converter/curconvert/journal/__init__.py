"""Records the finished steps of a run, so that an interrupted run can continue."""
