"""One page of many segmented cases."""
