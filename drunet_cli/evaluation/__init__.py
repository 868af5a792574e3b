"""Label maps against references: scores of arrays, pairs of files, statistics and plots. No torch."""
